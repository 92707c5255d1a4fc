"""A linear layer that is trained whole, with a weight of its own for every client."""

from __future__ import annotations

from torch import Tensor, nn

from .autograd import trained_linear
from .trained_layer import TrainedLayer


class Trained(TrainedLayer):
    """The behaviour of :class:`~ffalora.adapters.layers.TrainedLinear`, wherever its linear layer lives."""

    base_layer: nn.Linear

    def trained(self) -> dict[str, nn.Parameter]:
        """Weight before bias: the order of columns and slots."""
        return dict(self.base_layer.named_parameters())

    def trained_product(self, x: Tensor) -> Tensor:
        """``x wᵀ + bias``: with the layer's own tensors, or in a pass with every client's."""
        current = self._passes.current
        bias = self.base_layer.bias
        if current is None:
            return nn.functional.linear(x, self.base_layer.weight, bias)
        return trained_linear(
            x,
            self.from_state(current, "weight", self.base_layer.weight),
            None if bias is None else self.from_state(current, "bias", bias),
            current.segments_of(x, self.name, self.folded),
            self.sink(current, "weight", "bias"),
        )
