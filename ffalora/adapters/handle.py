"""The handle of a model's adapters: reads, writes, switches, merges, saves and removes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .base_layers import check_unshared
from .layers import LowRank
from .memory import MemoryReport, memory_of
from .state import Layout
from .trained_layer import TrainedLayer
from .training_pass import PassSlot, TrainingPass
from .uses import probe_uses

if TYPE_CHECKING:
    from ..config.adapter import AdapterConfig


class Adapters:
    """The adapters of one model.

    Attributes:
        model: the model, changed in place: targets are replaced, everything that is not trained is frozen.
        config: what was asked for.
        layers: the adapted layers by dotted name.
        heads: the trained head's layers by dotted name; empty with a frozen head.
        given_heads: names of head layers that a checkpoint brought with it: they are saved again.
        layout: who owns which columns of the flat state.
    """

    def __init__(
        self,
        model: nn.Module,
        config: AdapterConfig,
        layers: Sequence[LowRank],
        heads: Sequence[TrainedLayer],
        passes: PassSlot,
    ):
        self.model = model
        self.config = config
        self.layers = {layer.name: layer for layer in layers}
        self.heads = {head.name: head for head in heads}
        self.given_heads: list[str] = []
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
        self.config = type(self.config)(**{**vars(self.config), "trained": trained})
        self.layout = Layout([*self.layers.values(), *self.heads.values()])

    def state(self) -> Tensor:
        """A copy of every trained number as one row, float32 ``[P]``."""
        return self.layout.gather()

    def load_state_(self, row: Tensor) -> None:
        """Writes a row ``[P]`` into the model's trained tensors.

        Raises:
            RuntimeError: adapters are merged: the base weights would keep what the earlier row added.
        """
        if merged := [name for name, layer in self.layers.items() if layer.is_merged]:
            raise RuntimeError(f"{merged[0]} is merged into its base weight; call unmerge() before loading a state")
        self.layout.scatter(row)

    @contextmanager
    def training_pass(self, current: TrainingPass) -> Iterator[None]:
        """Within the block, layers read the state and write the arena of ``current``, not their own parameters."""
        if self._passes.current is not None:
            raise RuntimeError("a training pass is already under way on this model")
        self._passes.current = current
        current.begin()
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
        """Adds every adapter to its base weight: the model then runs at the base model's speed.

        Raises:
            ValueError: a base weight is another module's too (a head tied to the input embeddings), which would change
                with it, or cannot hold the sum. No weight has changed then.
        """
        self.check_mergeable("merging")
        for layer in self.layers.values():
            layer.merge()

    def check_mergeable(self, change: str) -> None:
        """ValueError where a base weight cannot hold its adapter, or is another module's too, so that ``change`` (which
        the message names) would reach that one.
        """
        for name, layer in self.layers.items():
            layer.check_mergeable()
            check_unshared(self.model, layer.base_layer, name, change, "keep the adapter beside the base")

    def unmerge(self) -> None:
        """Takes the adapters out of the base weights again (to rounding)."""
        for layer in self.layers.values():
            layer.unmerge()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within the block the model answers as if it had no adapters; after it, as before. A head that is trained in
        place (``head='trained'``) stays what it is.
        """
        with ExitStack() as stack:
            for layer in self.layers.values():
                stack.enter_context(layer.disabled())
            yield

    def detach(self) -> nn.Module:
        """Puts the original layers back (merged ones stay merged) and returns the model, frozen as it was."""
        for layer in self.layers.values():
            layer.take_back_initial_product()
        replace_modules(self.model, {layer.module: layer.base_layer for layer in self.trained_layers()})
        return self.model

    def save(self, folder: str | Path, root: str = "") -> None:
        """Writes PEFT's files: ``adapter_config.json`` and ``adapter_model.safetensors``.

        Args:
            folder: made if missing.
            root: dotted name of the submodule that PEFT will wrap, where that is not the whole model.
        """
        from .peft import save_adapters

        heads = [*self.heads, *self.given_heads]
        save_adapters(self.model, self.config, self.layers, heads, Path(folder), root)

    def memory(self) -> MemoryReport:
        """Bytes of base, frozen factors, trained tensors, and of a row of the arena."""
        factors = [p for layer in self.layers.values() for p in layer.factors().values()]
        trained = [p for layer in self.trained_layers() for p in layer.trained().values()]
        return memory_of(self.model, factors, trained, self.layout.width)

    def __repr__(self) -> str:
        return (
            f"Adapters({len(self.layers)} layers, {len(self.heads)} head layers, {self.layout.size:,} trained numbers)"
        )


def replace_modules(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Puts ``new[m]`` wherever the model holds ``m``: a shared layer hangs in several places."""
    for parent in list(model.modules()):
        if parent not in new.values():
            for child, module in list(parent._modules.items()):
                if module in new:
                    parent._modules[child] = new[module]
