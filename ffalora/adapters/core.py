"""An adapter whose R × R core is trained between two frozen factors: ``scale · b core a`` (LoRA-SB, Fed-SB)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .autograd import trained_linear
from .dropout import masked_dropout
from .layers import AdaptedLinear
from .training_pass import PassSlot, TrainingPass


class CoreLinear(AdaptedLinear):
    """Attributes beside those of :class:`AdaptedLinear`, whose factors are both frozen here.

    Attributes:
        lora_core: ``[R,R]``, float32, zero at first.
    """

    def __init__(
        self, base_layer: nn.Module, name: str, passes: PassSlot, a: Tensor, b: Tensor, scale: float, dropout: float
    ):
        super().__init__(base_layer, name, passes, a, b, scale, dropout, trained="")
        self.lora_core = nn.Parameter(torch.zeros(len(a), len(a), device=a.device))

    def trained(self) -> dict[str, nn.Parameter]:
        return {"lora_core": self.lora_core}

    def train_factors(self, trained: str) -> None:
        """Raises ValueError for anything but 'core'."""
        if trained != "core":
            raise ValueError(f"{self.name} has a core, which alone can be trained; got trained={trained!r}")

    def checkpoint(self) -> dict[str, Tensor]:
        """``a`` and ``b core``: the product as PEFT's files hold it."""
        return {"lora_A.weight": self.lora_A, "lora_B.weight": self.lora_B @ self.lora_core}

    def delta(self) -> Tensor:
        """``scale · b core a``, float32 ``[N,K]``."""
        return self.scale * (self.lora_B @ self.lora_core @ self.lora_A)

    def merged_weight(self, row: Tensor) -> Tensor | None:
        """None: passes do not use merged weights, the core's gradient needs ``a x`` anyway."""
        return None

    def _product(self, x: Tensor, w: Tensor | None, bias: Tensor | None, current: TrainingPass | None) -> Tensor:
        source = x
        if self.p_dropout and (self.training or current is not None):
            source = masked_dropout(x, self.p_dropout, None if current is None else current.masks)
        h = F.linear(source, self.lora_A.to(x.dtype))
        if current is None:
            u = F.linear(h, self.lora_core.to(x.dtype))
        else:
            core = self.from_state(current, "lora_core", self.lora_core)
            u = trained_linear(
                h, core, None, current.segments_of(x, self.name, self.folded), self.sink(current, "lora_core", "none")
            )
        y = self.scale * F.linear(u, self.lora_B.to(x.dtype))
        return y if w is None else y + F.linear(x, w, bias)
