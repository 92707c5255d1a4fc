"""Products that the server adds to the base weights, exact and in float32, and takes out again for saving."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...adapters import Adapters
from ...config import Config, ConfigError
from .base import ServerState, Strategy
from .factors import low_rank_svd
from .wire import Wire

#: How many numbers each client is sent of what the server last added to the base, and after how many rounds it did.
_SENT = "sent.after"

_PREFIX = "residual."
_NEGLIGIBLE = 1e-7


class BaseResidual:
    """Adds float32 residuals ``[N,K]`` to base weights, always from the untouched weight, so that nothing is rounded
    twice.

    The residuals live among the server's tensors; this object holds copies of the untouched weights only.
    """

    def __init__(self, adapters: Adapters):
        self._adapters = adapters
        self._untouched: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, tensors: dict[str, Tensor], products: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Puts ``scale · product`` (float64 ``[N,K]``, by layer) on top of the residuals and loads the model anew.

        Returns:
            by how much ``weight / scale`` really changed, float64 ``[N,K]`` by layer: measured on the model's weights.
        """
        before = {name: self._adapters.layers[name].base_weight().double() for name in products}
        for name, product in products.items():
            old = tensors.get(_PREFIX + name, torch.zeros_like(product)).to(product)
            tensors[_PREFIX + name] = (old + self._adapters.layers[name].scale * product).float()
        self.load(tensors)
        return {
            name: (layer.base_weight().double() - before[name]) / layer.scale
            for name, layer in self._adapters.layers.items()
            if name in products
        }

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Writes untouched weights plus residuals into the model."""
        for name, layer in self._adapters.layers.items():
            residual, weight = tensors.get(_PREFIX + name), layer.base_layer.weight
            if residual is not None:
                weight.copy_(self._untouched.setdefault(name, weight.detach().clone()))
                layer.add_to_base(residual.to(weight.device))

    @torch.no_grad()
    def export(self, tensors: dict[str, Tensor]) -> None:
        """Gives the base its weights back and replaces the adapters by ones of a rank that holds residual and adapter.

        Their scale is 1 and their rank the same everywhere, as great as any layer needs.
        """
        found = {}
        for name, layer in self._adapters.layers.items():
            if name in self._untouched:
                layer.base_layer.weight.copy_(self._untouched[name])
            total = layer.delta().double()
            if _PREFIX + name in tensors:
                total = total + tensors[_PREFIX + name].to(total)
            u, s, vt = low_rank_svd(total, torch.eye(total.shape[1], dtype=total.dtype, device=total.device))
            rank = max(1, int((s > _NEGLIGIBLE * s[0]).sum()))
            found[name] = ((u * s)[:, :rank].float(), vt[:rank].float())
        rank = max(len(a) for _, a in found.values())
        changes = {"rank": rank, "alpha": float(rank), "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
        self._adapters.config = self._adapters.config.model_copy(update=changes)
        for name, (b, a) in found.items():
            layer, missing = self._adapters.layers[name], rank - len(a)
            layer.lora_B = torch.nn.Parameter(torch.nn.functional.pad(b, (0, missing)))
            layer.lora_A = torch.nn.Parameter(torch.nn.functional.pad(a, (0, 0, 0, missing)))
            layer.scale = 1.0
        self._adapters.train_factors("both")


class ResidualWire(Wire):
    """The residuals go down beside the row."""

    def shared(self) -> dict[str, tuple[int, ...]]:
        layers = self.adapters.layers.items()
        return {_PREFIX + name: (layer.lora_B.shape[0], layer.lora_A.shape[1]) for name, layer in layers}

    def sent(self, server: ServerState) -> int:
        """Numbers of the last round's products, as they are sent to each client; 0 where nobody answered it."""
        numbers, rounds = server.tensors.get(_SENT, torch.zeros(2, dtype=torch.int64)).tolist()
        return numbers if rounds == server.round else 0

    def send(self, server: ServerState, numbers: int) -> None:
        """Has every client sent so many numbers of products once the round that is being aggregated is over."""
        server.tensors[_SENT] = torch.tensor([numbers, server.round + 1])


class MergesIntoBase(Strategy):
    """What methods share whose server adds products to the base weight. Their gap is measured on the weights that the
    model then has, so that aggregating loads these.

    Raises:
        ConfigError: a base that is not float32, whose weights are too coarse for the updates of a round, or one that
            cannot hold them, or shares its weight with other modules.
    """

    trained = "both"
    exact = True
    random_init = True
    linear = False
    wire_class = ResidualWire
    wire: ResidualWire

    def __init__(self, adapters: Adapters, config: Config, clients: int):
        super().__init__(adapters, config, clients)
        for name, layer in adapters.layers.items():
            dtype = layer.base_layer.weight.dtype
            if dtype != torch.float32:
                raise ConfigError(
                    f"federation.strategy={self.name!r} adds updates to the base weight, and {name} is "
                    f"{str(dtype).removeprefix('torch.')}, which would round them away (model.dtype="
                    f"{config.model.dtype}); set model.dtype=float32"
                )
        try:
            adapters.check_mergeable(f"federation.strategy={self.name!r}")
        except ValueError as error:
            raise ConfigError(f"{error} (adapter.exclude_modules leaves a layer out)") from None
        self._base = BaseResidual(adapters)

    def load(self, server: ServerState, row: Tensor | None = None, trains: bool = False) -> None:
        self._base.load(server.tensors)
        super().load(server, row, trains)

    def export(self, server: ServerState) -> None:
        super().load(server)
        self._base.export(server.tensors)
