"""What happened while a cohort trained, sample by sample of each client's last step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


def _no_counts() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


def _no_numbers() -> Tensor:
    return torch.empty(0, dtype=torch.float64)


@dataclass
class TrainingReport:
    """What happened in a call of ``Engine.train``; numbers marked private are computed on private data without noise.

    Attributes:
        tokens, padded_tokens: of all passes, without and with padding.
        samples_by_row: int64 ``[C]``, samples passed through the model, by row of the cohort.
        nonfinite_by_row: int64 ``[C]``, samples whose gradient held NaN or Inf and contributed zero (private). Without
            privacy the samples of a physical batch share a client's gradient.
        rows: int64 ``[S]``, whose sample each of the last logical step is.
        losses, norms: float64 ``[S]``, of these samples (private); norms are empty without privacy.
        above: bool ``[S]``, which of those norms were above the clipping norm (private).
        rejected: clients whose row came back with NaN or Inf and was left out.
        dropped: clients that vanished before their row arrived; they have spent the steps they took.
    """

    tokens: int = 0
    padded_tokens: int = 0
    samples_by_row: Tensor = field(default_factory=_no_counts)
    nonfinite_by_row: Tensor = field(default_factory=_no_counts)
    rows: Tensor = field(default_factory=_no_counts)
    losses: Tensor = field(default_factory=_no_numbers)
    norms: Tensor = field(default_factory=_no_numbers)
    above: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    rejected: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, clients: int) -> TrainingReport:
        """An empty report of a cohort."""
        none = torch.zeros(clients, dtype=torch.int64)
        return cls(samples_by_row=none, nonfinite_by_row=none.clone())

    def add(self, other: TrainingReport, rows: Sequence[int] | Tensor) -> None:
        """What some of the clients did next: counts add up, and their last step is now the other's.

        Args:
            rows: which row of this report each row of the other's is.
        """
        rows = torch.as_tensor(rows)
        self.tokens += other.tokens
        self.padded_tokens += other.padded_tokens
        self.samples_by_row[rows] += other.samples_by_row
        self.nonfinite_by_row[rows] += other.nonfinite_by_row
        stay = ~torch.isin(self.rows, rows)
        if len(self.norms):
            self.norms, self.above = self.norms[stay], self.above[stay]
        self.rows = torch.cat([self.rows[stay], rows[other.rows]])
        self.losses = torch.cat([self.losses[stay], other.losses])
        self.norms, self.above = torch.cat([self.norms, other.norms]), torch.cat([self.above, other.above])

    def part(self, begin: int, end: int) -> TrainingReport:
        """The report of the rows from ``begin`` to ``end``; tokens are those of all passes that they took part in."""
        mine = (self.rows >= begin) & (self.rows < end)
        norms, above = (each[mine] if len(each) else each for each in (self.norms, self.above))
        return TrainingReport(
            tokens=self.tokens,
            padded_tokens=self.padded_tokens,
            samples_by_row=self.samples_by_row[begin:end],
            nonfinite_by_row=self.nonfinite_by_row[begin:end],
            rows=self.rows[mine] - begin,
            losses=self.losses[mine],
            norms=norms,
            above=above,
        )

    @property
    def samples(self) -> int:
        """Samples passed through the model."""
        return int(self.samples_by_row.sum())

    @property
    def nonfinite(self) -> int:
        """Samples whose gradient held NaN or Inf."""
        return int(self.nonfinite_by_row.sum())

    @property
    def loss(self) -> float:
        """Mean training loss of the last logical step; NaN without samples."""
        return float(self.losses.mean()) if len(self.losses) else math.nan

    @property
    def median_norm(self) -> float:
        """Median of the finite gradient norms of the last logical step; NaN without privacy or samples."""
        finite = self.norms[self.norms.isfinite()]
        return float(finite.median()) if len(finite) else math.nan

    @property
    def clipped(self) -> float:
        """Share of the last logical step's finite gradients whose norm was above the clipping norm."""
        finite = self.norms.isfinite()
        return float(self.above[finite].double().mean()) if bool(finite.any()) else 0.0

    @property
    def padding(self) -> float:
        """Share of the computed tokens that were padding."""
        return 1.0 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0
