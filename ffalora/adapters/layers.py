"""The layers that replace a model's own: an adapted linear layer, and a trained head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .autograd import Sink, adapted_linear, masked_dropout, trained_linear
from .training_pass import PassSlot, TrainingPass, one_segment


class TrainedLayer(nn.Module):
    """What both layers share: a base layer, trained tensors with places in the flat state, and a way to the current pass.

    Attributes:
        base_layer: the layer that was replaced.
        name: its dotted name in the model.
        places: first column of each trained tensor in state and arena, by tensor name.
        slot: first column of this layer in ``squares``.
        shared_use: the layer is used more than once in a forward pass, so that its gradients accumulate.
    """

    def __init__(self, base_layer: nn.Module, name: str, passes: PassSlot):
        super().__init__()
        self.base_layer = base_layer
        self.name = name
        self.places: dict[str, int] = {}
        self.slot = 0
        self.shared_use = False
        self._passes = passes

    def trained(self) -> dict[str, nn.Parameter]:
        """The trained tensors by name, in the order of their columns and slots."""
        raise NotImplementedError

    def _from_state(self, current: TrainingPass, name: str, like: Tensor) -> Tensor:
        """The tensor of every client ``[C, *like.shape]`` as a view of the state, or ``like`` itself where it is frozen."""
        if name not in self.places:
            return like.unsqueeze(0)
        start = self.places[name]
        return current.state[:, start : start + like.numel()].view(-1, *like.shape)

    def _sink(self, current: TrainingPass, first: str, second: str) -> Sink:
        columns = self.places.get(first), self.places.get(second)
        return Sink(current.arena, current.squares, self.slot, *columns, accumulate=self.shared_use)


class AdaptedLinear(TrainedLayer):
    """A frozen linear layer plus ``scale · lora_B lora_A``.

    Attributes:
        lora_A: ``[R,K]`` and lora_B: ``[N,R]``, float32 (the names PEFT uses).
        scale: ``alpha/R`` or ``alpha/√R``.
    """

    def __init__(
        self, base_layer: nn.Module, name: str, passes: PassSlot, a: Tensor, b: Tensor, scale: float, dropout: float, trained: str
    ):
        super().__init__(base_layer, name, passes)
        self.lora_A = nn.Parameter(a, requires_grad=trained in ("a", "both"))
        self.lora_B = nn.Parameter(b, requires_grad=trained in ("b", "both"))
        self.scale = scale
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.is_merged = False
        self.is_enabled = True
        self.train(base_layer.training)

    @property
    def rank(self) -> int:
        return self.lora_A.shape[0]

    def trained(self) -> dict[str, nn.Parameter]:
        """``b`` before ``a``: the order of columns and slots."""
        return {n: p for n, p in (("lora_B", self.lora_B), ("lora_A", self.lora_A)) if p.requires_grad}

    def weight(self) -> tuple[Tensor, Tensor | None]:
        """The base layer's weight as ``[N,K]`` and its bias."""
        base = self.base_layer
        return (base.weight.T if isinstance(base, Conv1D) else base.weight), base.bias

    def delta(self, b: Tensor | None = None) -> Tensor:
        """``scale · b a``, float32 ``[N,K]``."""
        return self.scale * ((self.lora_B if b is None else b) @ self.lora_A)

    def forward(self, x: Tensor) -> Tensor:
        current = self._passes.current
        if self.is_merged and current is not None:
            raise RuntimeError(f"{self.name} is merged into its base weight and cannot be trained; call unmerge() first")
        if self.is_merged or not self.is_enabled:
            return self.base_layer(x)
        w, bias = self.weight()
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(w.dtype)
        x_adapter = masked_dropout(x, self.dropout.p) if self.dropout is not None and self.training else None
        if current is None:
            whole = one_segment(x.numel() // x.shape[-1], x.device)
            return adapted_linear(x, w, bias, self.lora_A, self.lora_B.unsqueeze(0), self.scale, whole, x_adapter=x_adapter)
        merged = current.merged is not None and self.name in current.merged
        return adapted_linear(
            x,
            current.merged[self.name] if merged else w,
            bias,
            self._from_state(current, "lora_A", self.lora_A)[0],
            self._from_state(current, "lora_B", self.lora_B),
            self.scale,
            current.segments_of(x, self.name),
            self._sink(current, "lora_A", "lora_B"),
            x_adapter,
            merged,
        )

    def merge(self) -> None:
        """Adds the adapter to the base weight, in the weight's dtype (bf16 loses small updates: keep the base in float32)."""
        if not self.is_merged:
            self._add_to_base(self.delta())
            self.is_merged = True

    def unmerge(self) -> None:
        """Takes the adapter out of the base weight again (to rounding)."""
        if self.is_merged:
            self._add_to_base(-self.delta())
            self.is_merged = False

    @torch.no_grad()
    def _add_to_base(self, delta: Tensor) -> None:
        w, _ = self.weight()
        w.copy_((w.float() + delta).to(w.dtype))


class TrainedLinear(TrainedLayer):
    """A linear layer that is trained whole (a task head): weight ``[N,K]`` and bias ``[N]``."""

    base_layer: nn.Linear

    def __init__(self, base_layer: nn.Module, name: str, passes: PassSlot):
        super().__init__(base_layer, name, passes)
        for parameter in base_layer.parameters():
            parameter.requires_grad_(True)
        self.train(base_layer.training)

    def trained(self) -> dict[str, nn.Parameter]:
        return dict(self.base_layer.named_parameters())

    def forward(self, x: Tensor) -> Tensor:
        current = self._passes.current
        if current is None:
            return self.base_layer(x)
        bias = self.base_layer.bias
        return trained_linear(
            x,
            self._from_state(current, "weight", self.base_layer.weight),
            None if bias is None else self._from_state(current, "bias", bias),
            current.segments_of(x, self.name),
            self._sink(current, "weight", "bias"),
        )
