"""Put adapters into a model, and the handle that reads, writes, merges and removes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config.adapter import AdapterConfig
from .base_layers import has_plain_weight, plain_weight, size_of
from .core import CoreLinear
from .init import FROM_BASE, factors_from_base, initial_a
from .layers import AdaptedLinear, TrainedLinear
from .low_rank import LowRank
from .memory import MemoryReport, memory_of
from .opacus_bridge import register_if_loaded
from .state import Layout
from .targets import find_head, find_targets, pattern_value
from .trained_layer import TrainedLayer
from .trained_linear import Trained
from .training_pass import PassSlot, TrainingPass
from .uses import probe_uses
from .variants import VARIANTS


class Adapters:
    """The adapters of one model.

    Attributes:
        model: the model, changed in place: targets are replaced, everything that is not trained is frozen.
        config: what was asked for.
        layers: the adapted layers by dotted name.
        heads: the trained head's layers by dotted name; empty with a frozen head.
        layout: who owns which columns of the flat state.
    """

    def __init__(
        self,
        model: nn.Module,
        config: AdapterConfig,
        layers: Sequence[LowRank],
        heads: Sequence[Trained],
        passes: PassSlot,
    ):
        self.model = model
        self.config = config
        self.layers = {layer.name: layer for layer in layers}
        self.heads = {head.name: head for head in heads}
        self._passes = passes
        self.layout = Layout([*layers, *heads])

    def train_factors(self, trained: str) -> None:
        """Switches which factor is trained: 'b', 'a' or 'both'. The layout changes with it; the values stay.

        Raises:
            ValueError: unknown ``trained``, or adapters with a core, where there is nothing to switch.
        """
        if (trained == "core") != (self.config.trained == "core") or trained not in ("b", "a", "both", "core"):
            allowed = "'core'" if self.config.trained == "core" else "'b', 'a' or 'both'"
            raise ValueError(f"trained must be {allowed}, got {trained!r}")
        for layer in self.layers.values():
            layer.train_factors(trained)
        self.config = self.config.model_copy(update={"trained": trained})
        self.layout = Layout([*self.layers.values(), *self.heads.values()])

    def state(self) -> Tensor:
        """A copy of every trained number as one row, float32 ``[P]``."""
        return self.layout.gather()

    def load_state_(self, row: Tensor) -> None:
        """Writes a row ``[P]`` into the model's trained tensors."""
        self.layout.scatter(row)

    @contextmanager
    def training_pass(self, current: TrainingPass) -> Iterator[None]:
        """Within the block, layers read the state and write the arena of ``current``, not their own parameters."""
        if self._passes.current is not None:
            raise RuntimeError("a training pass is already under way on this model")
        self._passes.current = current
        try:
            yield
        finally:
            self._passes.current = None

    def trained_layers(self) -> list[TrainedLayer]:
        return [*self.layers.values(), *self.heads.values()]

    def count_uses(self, inputs: Mapping[str, Any] | Tensor) -> dict[str, int]:
        """How often one forward pass uses each trained layer; layers used more than once are set to accumulate.

        Call it once before training where a model may share its layers (ALBERT): the answer is a property of the model,
        not of a step. The probe runs without gradients, in evaluation mode, and leaves the random state as it was.

        Args:
            inputs: keyword arguments of the model's forward, or its one tensor.
        """
        return probe_uses(self.model, self.layout.layers.values(), inputs)

    def merge(self) -> None:
        """Adds every adapter to its base weight: the model then runs at the base model's speed."""
        for layer in self.layers.values():
            layer.merge()

    def unmerge(self) -> None:
        """Takes the adapters out of the base weights again (to rounding)."""
        for layer in self.layers.values():
            layer.unmerge()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within the block the model answers as if it had no adapters."""
        for layer in self.layers.values():
            layer.is_enabled = False
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.is_enabled = True

    def detach(self) -> nn.Module:
        """Puts the original layers back (merged ones stay merged) and returns the model, frozen as it was."""
        for layer in self.layers.values():
            layer.take_back_initial_product()
        _replace(self.model, {layer.module: layer.base_layer for layer in self.trained_layers()})
        return self.model

    def save(self, folder: str | Path, root: str = "") -> None:
        """Writes PEFT's files: ``adapter_config.json`` and ``adapter_model.safetensors``.

        Args:
            folder: made if missing.
            root: dotted name of the submodule that PEFT will wrap, where that is not the whole model.
        """
        from .peft import save_adapters

        save_adapters(self, Path(folder), root)

    def memory(self) -> MemoryReport:
        """Bytes of base, frozen factors, trained tensors, and of a row of the arena."""
        return memory_of(self)

    def __repr__(self) -> str:
        return (
            f"Adapters({len(self.layers)} layers, {len(self.heads)} head layers, {self.layout.size:,} trained numbers)"
        )


def attach(model: nn.Module, config: AdapterConfig | None = None) -> Adapters:
    """Puts adapters on the linear layers that ``config`` names and freezes everything else.

    ``a`` depends on ``config.seed`` and the layer's name alone and ``b`` is zero (inits taken from the base weight: the
    base gives up their product), so the model's outputs do not change.

    Args:
        model: any transformers model (or torch module with linear layers); changed in place.
        config: defaults to FFA-LoRA of rank 8 on query and value projections.

    Returns:
        The handle to the adapters.

    Raises:
        ValueError: no layer matches, the model has adapters already, or a trained head holds something other than
            linear layers. The model is unchanged then.
    """
    config = config or AdapterConfig()
    if any(isinstance(module, TrainedLayer) for module in model.modules()):
        raise ValueError("this model has adapters already; call detach() on their handle before attaching new ones")
    targets, head = find_targets(model, config), find_head(model)
    _check_targets(targets, config)
    if config.head == "trained":
        _check_head(head, model)
    bases = _base_factors(config, targets) if config.init in FROM_BASE else {}
    model.requires_grad_(False)
    passes, layers = PassSlot(), []
    for name, base in targets.items():
        layer = _make_layer(config, name, base, passes, bases.get(name))
        if name in bases:
            layer.give_up_initial_product()
        layers.append(layer)
    heads = []
    if config.head == "trained":
        heads = [TrainedLinear(base, name, passes) for name, base in head.items() if name not in targets]
    _replace(model, {layer.base_layer: layer for layer in [*layers, *heads]})
    register_if_loaded()
    return Adapters(model, config, layers, heads, passes)


def _make_layer(
    config: AdapterConfig, name: str, base: nn.Module, passes: PassSlot, factors: tuple[Tensor, Tensor] | None
) -> Any:
    rank, scale = _rank_and_scale(config, name)
    if config.method != "lora":
        return VARIANTS[config.method](base, name, passes, config, rank, scale)
    (n, k), device = size_of(base), base.weight.device
    a, b = factors or (initial_a(rank, k, config.init, config.seed, name), torch.zeros(n, rank))
    if config.trained == "core":
        b = initial_a(rank, n, config.init, config.seed, f"{name}.lora_B").T.contiguous()
        return CoreLinear(base, name, passes, a.to(device), b.to(device), scale, config.dropout)
    return AdaptedLinear(base, name, passes, a.to(device), b.to(device), scale, config.dropout, config.trained)


def _rank_and_scale(config: AdapterConfig, name: str) -> tuple[int, float]:
    rank = pattern_value(config.rank_pattern, name, config.rank)
    return rank, config.scale(rank, pattern_value(config.alpha_pattern, name, config.alpha))


def _base_factors(config: AdapterConfig, targets: dict[str, nn.Module]) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors taken from the base weights, all of them before any weight changes."""
    factors = {}
    for name, base in targets.items():
        if not has_plain_weight(base):
            raise ValueError(f"init={config.init!r} changes base weights, but {name} is quantised; use a random init")
        rank, scale = _rank_and_scale(config, name)
        factors[name] = factors_from_base(plain_weight(base), rank, config.init, scale)
    return factors


def _check_targets(targets: dict[str, nn.Module], config: AdapterConfig) -> None:
    for name, base in targets.items():
        size_of(base)
        if config.method != "lora" and isinstance(base, nn.Conv2d):
            raise ValueError(
                f"method={config.method!r} adapts linear layers, but {name} is a Conv2d; use method='lora'"
            )


def _check_head(head: dict[str, nn.Module], model: nn.Module) -> None:
    if not head:
        raise ValueError("head='trained', but this model has no task head that was recognised; use head='frozen'")
    for name, module in head.items():
        if type(module) is not nn.Linear:
            raise ValueError(
                f"head='trained' trains linear layers, but {name} is a {type(module).__name__}; use head='frozen'"
            )

    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tied = [name for name, module in head.items() if id(module.weight) in embedded]
    if tied:
        raise ValueError(
            f"head='trained', but {tied[0]} shares its weight with the input embeddings, whose gradient is not "
            f"computed per "
            "sample; use head='frozen', or untie them"
        )


def _replace(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Puts ``new[m]`` wherever the model holds ``m``: a shared layer hangs in several places."""
    for parent in list(model.modules()):
        if parent not in new.values():
            for child, module in list(parent._modules.items()):
                if module in new:
                    parent._modules[child] = new[module]
