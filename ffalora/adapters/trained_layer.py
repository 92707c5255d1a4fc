"""What every trained layer shares: its places in the flat state, and the way to the current pass."""

from __future__ import annotations

from torch import Tensor, nn

from .autograd import Sink
from .training_pass import PassSlot, TrainingPass


class TrainedLayer:
    """A layer with trained tensors that have places in the flat state.

    Attributes:
        name: dotted name of the layer in the model.
        places: first column of each trained tensor in state and arena, by tensor name.
        slot: first column of this layer in ``squares``.
        shared_use: the layer is used more than once in a forward pass, so that its gradients accumulate.
        folded: its input leads with several rows a sample, one sample after another (windows, flattened tokens).
    """

    name: str
    places: dict[str, int]
    slot: int
    shared_use: bool
    folded: bool
    base_layer: nn.Module
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

    def trained(self) -> dict[str, nn.Parameter]:
        """The trained tensors by name, in the order of their columns and slots."""
        raise NotImplementedError

    def from_state(self, current: TrainingPass, name: str, like: Tensor) -> Tensor:
        """The tensor of every client ``[C, *like.shape]`` as a view of the state; ``like`` where it is frozen."""
        if name not in self.places:
            return like.unsqueeze(0)
        start = self.places[name]
        return current.state[:, start : start + like.numel()].view(-1, *like.shape)

    def sink(self, current: TrainingPass, first: str, second: str) -> Sink:
        """Where the gradients of two tensors go."""
        columns = self.places.get(first), self.places.get(second)
        return Sink(current.arena, current.squares, self.slot, *columns, accumulate=self.shared_use)
