"""What the layers that replace a model's own share: places in the flat state, and a base weight to merge into."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .autograd import Sink
from .base_layers import add_to_weight, check_plain_weight, plain_weight, weight_plus
from .training_pass import PassSlot, TrainingPass


class TrainedLayer:
    """A layer with trained tensors that have places in the flat state.

    Attributes:
        name: dotted name of the layer in the model.
        base_layer: the model's own layer.
        places: first column of each trained tensor in state and arena, by tensor name.
        slot: first column of this layer in ``squares``.
        shared_use: the layer is used more than once in a forward pass, so that its gradients accumulate.
        folded: its input leads with several rows a sample, one sample after another (windows, flattened tokens).
    """

    name: str
    base_layer: nn.Module
    places: dict[str, int]
    slot: int
    shared_use: bool
    folded: bool
    _passes: PassSlot

    def take_place(self, name: str, passes: PassSlot) -> None:
        """Sets what the layer needs before it has a place."""
        self.name, self._passes = name, passes
        self.places, self.slot, self.shared_use, self.folded = {}, 0, False, False

    @property
    def module(self) -> nn.Module:
        """The module whose forward pass uses this layer (itself, unless it is a view of another library's layer)."""
        if not isinstance(self, nn.Module):
            raise NotImplementedError(f"{type(self).__name__} must name the module it stands for")
        return self

    @property
    def weight(self) -> Tensor:
        """The base layer's own weight (models ask their layers for its dtype and device)."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The base layer's own bias."""
        return self.base_layer.bias

    @property
    def in_features(self) -> int:
        """The base layer's own (models and libraries ask their linear layers); AttributeError where it has none."""
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        """The base layer's own; AttributeError where it has none."""
        return self.base_layer.out_features

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As of any module; the base layer's weight and bias are set there (models tie their weights so)."""
        owner: Any = self.base_layer if name in ("weight", "bias") else super()
        owner.register_parameter(name, param)

    def trained(self) -> dict[str, nn.Parameter]:
        """The trained tensors by name, in the order of their columns and slots."""
        raise NotImplementedError

    def factors(self) -> dict[str, nn.Parameter]:
        """Every tensor that may be trained, trained or not."""
        return self.trained()

    def from_state(self, current: TrainingPass, name: str, like: Tensor) -> Tensor:
        """The tensor of every client ``[C, *like.shape]`` as a view of the state; ``like`` where it is frozen."""
        if name not in self.places:
            return like.unsqueeze(0)
        start = self.places[name]
        return current.state[:, start : start + like.numel()].view(-1, *like.shape)

    def sink(self, current: TrainingPass, first: str, second: str) -> Sink:
        """Where the gradients of two tensors go."""
        columns = self.places.get(first), self.places.get(second)
        mixes = None if current.mixes is None else current.mixes.get(self.name)
        return Sink(
            current.arena,
            current.squares,
            self.slot,
            *columns,
            current.writes,
            self.shared_use,
            current.written,
            mixes,
        )


class Mergeable(TrainedLayer):
    """A base layer and what is added to its product, which a plain base weight can take in.

    Attributes:
        is_merged: the base weight holds it; is_enabled: it is added at all.
    """

    is_merged: bool
    is_enabled: bool

    def delta(self) -> Tensor:
        """The change of the base weight that this amounts to, float32 ``[N,K]``; ValueError where it is none."""
        raise NotImplementedError

    def weight_alone(self) -> Tensor:
        """The base layer's weight as it is without the adapter, in its own shape and dtype (merged: to rounding)."""
        w = self.base_layer.weight
        return weight_plus(self.base_layer, -self.delta().detach()) if self.is_merged else w

    def base_weight(self) -> Tensor:
        """The base layer's weight as ``[N,K]``."""
        return plain_weight(self.base_layer)

    def check_mergeable(self) -> None:
        """ValueError where the base layer has no plain weight that could hold the sum."""
        check_plain_weight(self.base_layer, self.name)

    def merge(self) -> None:
        """Adds the adapter to the base weight, in its dtype (bf16 loses small updates: keep the base in float32).

        Raises:
            ValueError: the base layer has no plain weight that could hold the sum.
        """
        if not self.is_merged:
            self.check_enabled()
            self.add_to_base(self.delta())
            self.is_merged = True

    def unmerge(self) -> None:
        """Takes the adapter out of the base weight again (to rounding)."""
        if self.is_merged:
            self.check_enabled()
            self.add_to_base(-self.delta())
            self.is_merged = False

    def check_enabled(self) -> None:
        """RuntimeError within :meth:`disabled`, which puts the base weight back at its end."""
        if not self.is_enabled:
            raise RuntimeError(
                f"{self.name} is disabled, and its base weight stays as it is until it is enabled again; merge, "
                "unmerge and detach outside of disabled()"
            )

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within the block the layer is the model's own: its weight too, where an adapter is merged into it or took
        from it; at the end, bit by bit, what it was before.
        """
        before, kept = self.is_enabled, None
        if before and (without := self.without_adapter()) is not None:
            kept = self.base_layer.weight.detach().clone()
            with torch.no_grad():
                self.base_layer.weight.copy_(without)
        self.is_enabled = False
        try:
            yield
        finally:
            self.is_enabled = before
            if kept is not None:
                with torch.no_grad():
                    self.base_layer.weight.copy_(kept)

    def without_adapter(self) -> Tensor | None:
        """The weight that the model's own layer had, where the base layer holds another one; else None."""
        return self.weight_alone() if self.is_merged else None

    def add_to_base(self, delta: Tensor) -> None:
        """Adds ``[N,K]`` to the base weight; ValueError where that is not a plain tensor."""
        add_to_weight(self.base_layer, delta, self.name)
