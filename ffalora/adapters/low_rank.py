"""The low-rank adapter itself: which product a base layer needs, the pass, and merging.

Three kinds of base layer: *fused* ones (a plain weight: one autograd function owns base product and adapter), ones with
a product of their *own* (quantised or subclassed layers: the base runs as it is, so that the gradient of its input goes
through its own dequantised product), and *convolutions* (a linear layer of unfolded patches).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .autograd import adapted_linear
from .base_layers import add_to_weight, is_fused, plain_weight, unfold
from .dropout import masked_dropout
from .trained_layer import TrainedLayer
from .training_pass import TrainingPass, one_segment


class LowRank(TrainedLayer):
    """The behaviour of :class:`~ffalora.adapters.layers.AdaptedLinear`, wherever its factors live."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    scale: float
    p_dropout: float
    is_merged: bool
    is_enabled: bool
    training: bool
    initial: tuple[Tensor, Tensor] | None = None

    @property
    def rank(self) -> int:
        return self.lora_A.shape[0]

    def factors(self) -> dict[str, nn.Parameter]:
        """Both factors, ``b`` before ``a``: the order of columns and slots."""
        return {"lora_B": self.lora_B, "lora_A": self.lora_A}

    def trained(self) -> dict[str, nn.Parameter]:
        """The factors that are trained, in the order of their columns and slots."""
        return {name: factor for name, factor in self.factors().items() if factor.requires_grad}

    def train_factors(self, trained: str) -> None:
        """Trains 'b', 'a' or 'both' and freezes the other."""
        for name, factor in self.factors().items():
            factor.requires_grad_(trained in ("both", name[-1].lower()))

    def checkpoint(self) -> dict[str, Tensor]:
        """Both factors under the names and in the shapes of PEFT's files (a convolution's are convolutions)."""
        a, b, base = self.lora_A, self.lora_B, self.base_layer
        if isinstance(base, nn.Conv2d):
            return {"lora_A.weight": a.view(-1, *base.weight.shape[1:]), "lora_B.weight": b.view(*b.shape, 1, 1)}
        return {"lora_A.weight": a, "lora_B.weight": b}

    def base_weight(self) -> Tensor:
        """The base layer's weight as ``[N,K]``."""
        return plain_weight(self.base_layer)

    def delta(self) -> Tensor:
        """``scale · b a``, float32 ``[N,K]``."""
        return self.scale * (self.lora_B @ self.lora_A)

    def merged_weight(self, row: Tensor) -> Tensor | None:
        """``w + scale · b a`` with the factors of a row ``[P]`` of the state, ``[N,K]`` in the weight's dtype.

        None for a base layer whose product is its own.
        """
        if not is_fused(self.base_layer):
            return None
        b, a = (
            own if name not in self.places else row[self.places[name] : self.places[name] + own.numel()].view(own.shape)
            for name, own in (("lora_B", self.lora_B), ("lora_A", self.lora_A))
        )
        w = self.base_weight()
        return torch.addmm(w.float(), b, a, alpha=self.scale).to(w.dtype)

    def adapt(self, x: Tensor) -> Tensor:
        """The layer's output: base product plus adapter, with the layer's own factors or, in a pass, every client's."""
        current = self._passes.current
        if self.is_merged and current is not None:
            raise RuntimeError(
                f"{self.name} is merged into its base weight and cannot be trained; call unmerge() first"
            )
        if self.is_merged or not self.is_enabled:
            return self.base_layer(x)
        if is_fused(self.base_layer):
            w, bias = self.base_weight(), self.base_layer.bias
            return self._product(self._cast(x, w.dtype), w, bias, current)
        y = self.base_layer(x)
        if isinstance(self.base_layer, nn.Conv2d):
            tokens = self._product(unfold(self.base_layer, self._cast(x, y.dtype)), None, None, current)
            return y + tokens.transpose(-1, -2).reshape(y.shape)
        return y + self._product(self._cast(x, y.dtype), None, None, current).to(y.dtype)

    def _product(self, x: Tensor, w: Tensor | None, bias: Tensor | None, current: TrainingPass | None) -> Tensor:
        x_adapter = None
        if self.p_dropout and (self.training or current is not None):
            x_adapter = masked_dropout(x, self.p_dropout, None if current is None else current.masks)
        if w is None and x_adapter is not None:
            x, x_adapter = x_adapter, None
        if current is None:
            whole = one_segment(x.numel() // x.shape[-1], x.device)
            b = self.lora_B if self.lora_B.dtype == x.dtype else self.lora_B.float()
            return adapted_linear(x, w, bias, self.lora_A, b.unsqueeze(0), self.scale, whole, x_adapter=x_adapter)
        merged = w is not None and current.merged is not None and self.name in current.merged
        return adapted_linear(
            x,
            current.merged[self.name] if merged and current.merged is not None else w,
            bias,
            self.from_state(current, "lora_A", self.lora_A)[0],
            self.from_state(current, "lora_B", self.lora_B),
            self.scale,
            current.segments_of(x, self.name, self.folded),
            self.sink(current, "lora_A", "lora_B"),
            x_adapter,
            merged,
        )

    @staticmethod
    def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
        return x if torch.is_autocast_enabled(x.device.type) else x.to(dtype)

    def give_up_initial_product(self) -> None:
        """Takes ``scale · b a`` out of the base weight for good: the factors were taken from it (PiSSA, OLoRA)."""
        self.initial = self.lora_A.detach().clone(), self.lora_B.detach().clone()
        self.add_to_base(-self.delta().detach())

    def take_back_initial_product(self) -> None:
        """Gives the base weight back what :meth:`give_up_initial_product` took, unless a merged adapter brings it."""
        if self.initial is not None and not self.is_merged:
            a, b = self.initial
            self.add_to_base(self.scale * (b.to(self.lora_B.device) @ a.to(self.lora_A.device)))
            self.initial = None

    def merge(self) -> None:
        """Adds the adapter to the base weight, in the weight's dtype (bf16 loses small updates: keep the base in
        float32).

        Raises:
            ValueError: the base layer has no plain weight that could hold the sum.
        """
        if not self.is_merged:
            self.add_to_base(self.delta())
            self.is_merged = True

    def unmerge(self) -> None:
        """Takes the adapter out of the base weight again (to rounding)."""
        if self.is_merged:
            self.add_to_base(-self.delta())
            self.is_merged = False

    def add_to_base(self, delta: Tensor) -> None:
        """Adds ``[N,K]`` to the base weight; ValueError where that is not a plain tensor."""
        add_to_weight(self.base_layer, delta, self.name)
