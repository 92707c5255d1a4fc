"""The layers that replace a model's own: an adapted linear layer, and a trained head."""

from __future__ import annotations

from torch import Tensor, nn

from .low_rank import LowRank
from .trained_layer import TrainedLayer
from .trained_linear import Trained
from .training_pass import PassSlot

__all__ = ["AdaptedLinear", "TrainedLayer", "TrainedLinear"]


class AdaptedLinear(LowRank, nn.Module):
    """A frozen linear layer (Linear, Conv1D, Conv2d, or any subclass with a product of its own) plus ``scale · lora_B
    lora_A``.

    Attributes:
        base_layer: the layer that was replaced.
        lora_A: ``[R,K]`` and lora_B: ``[N,R]``, float32 (the names PEFT uses).
        scale: ``alpha/R`` or ``alpha/√R``.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        name: str,
        passes: PassSlot,
        a: Tensor,
        b: Tensor,
        scale: float,
        dropout: float,
        trained: str,
    ):
        nn.Module.__init__(self)
        self.take_place(name, passes)
        self.base_layer = base_layer
        self.lora_A = nn.Parameter(a, requires_grad=trained in ("a", "both"))
        self.lora_B = nn.Parameter(b, requires_grad=trained in ("b", "both"))
        self.scale = scale
        self.p_dropout = dropout
        self.is_merged = False
        self.is_enabled = True
        self.train(base_layer.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.adapt(x)

    @property
    def weight(self) -> Tensor:
        """The base layer's own weight (models ask their layers for its dtype and device)."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The base layer's own bias."""
        return self.base_layer.bias

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale:g}, dropout={self.p_dropout:g}"


class TrainedLinear(Trained, nn.Module):
    """A linear layer that is trained whole (a task head): weight ``[N,K]`` and bias ``[N]``."""

    base_layer: nn.Linear

    def __init__(self, base_layer: nn.Module, name: str, passes: PassSlot):
        nn.Module.__init__(self)
        self.take_place(name, passes)
        self.base_layer = base_layer
        for parameter in base_layer.parameters():
            parameter.requires_grad_(True)
        self.train(base_layer.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) if self._passes.current is None else self.trained_product(x)
