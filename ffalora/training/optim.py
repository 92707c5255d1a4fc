"""What the local optimiser carries from step to step: its moments, and the schedule of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import OptimizerConfig


@dataclass
class Moments:
    """Moments of the local optimiser, one row a client.

    Attributes:
        age: int64 ``[C]``, steps since the moments were zero.
        exp_avg: float32 ``[C,P]``, first moment; None without momentum.
        exp_avg_sq: float32 ``[C,P]``, second moment; None but for adamw.
    """

    age: Tensor
    exp_avg: Tensor | None = None
    exp_avg_sq: Tensor | None = None

    @classmethod
    def zeros(cls, optimizer: OptimizerConfig, clients: int, width: int, device: torch.device | str = "cpu") -> Moments:
        """Fresh moments of the optimiser for ``clients`` rows of ``width`` columns."""
        adamw = optimizer.name == "adamw"
        return cls(
            torch.zeros(clients, dtype=torch.int64, device=device),
            torch.zeros(clients, width, device=device) if adamw or optimizer.momentum else None,
            torch.zeros(clients, width, device=device) if adamw else None,
        )

    def tensors(self) -> dict[str, Tensor]:
        """What is there, by name (for checkpoints)."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def stacked(cls, parts: Sequence[Moments]) -> Moments:
        """The rows of all parts, one below the other; a single part itself."""
        if len(parts) == 1:
            return parts[0]
        names = parts[0].tensors()
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def rows(self, index: Tensor) -> Moments:
        """A copy of some clients' rows, int64 ``index``."""
        return Moments(**{name: value[index] for name, value in self.tensors().items()})

    def columns(self, index: Tensor) -> Moments:
        """A copy of some columns, int64 ``index``, of all rows."""
        parts = {name: value[:, index] for name, value in self.tensors().items() if name != "age"}
        return Moments(self.age.clone(), **parts)

    def put_(self, index: Tensor, rows: Moments) -> None:
        """Writes rows that :meth:`rows` copied back, after they changed."""
        for name, value in rows.tensors().items():
            getattr(self, name)[index] = value


def lr_factor(optimizer: OptimizerConfig, step: int, total: int) -> float:
    """What the learning rate is multiplied with at ``step`` (from 0) of ``total`` logical steps.

    It rises linearly over the warm-up steps, to 1 at the last of them; then it stays (constant), falls linearly, or
    falls along half a cosine, in both cases to reach 0 just after the last step.
    """
    warmup = optimizer.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if optimizer.schedule == "constant" or total <= warmup:
        return 1.0
    done = min(1.0, (step - warmup) / (total - warmup))
    return 1.0 - done if optimizer.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
