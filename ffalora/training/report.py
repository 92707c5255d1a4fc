"""What happened while a cohort trained, sample by sample of each client's last step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .batches import PhysicalBatches


def _no_counts() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


def _no_numbers() -> Tensor:
    return torch.empty(0, dtype=torch.float64)


@dataclass
class TrainingReport:
    """What happened in a call of ``Engine.train``; numbers marked private are computed on private data without noise.

    Attributes:
        samples_by_row: int64 ``[C]``, samples passed through the model, by row of the cohort.
        tokens, padded_tokens: of all these samples, without and with the padding of their passes.
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

    def add_step(
        self, losses: Sequence[Tensor], norms: Tensor, rows: Tensor, limits: Tensor | None, drawn: Sequence[int],
        plan: PhysicalBatches,
    ) -> None:  # fmt: skip
        """Adds the counts of a logical step, and makes it the last one.

        Args:
            losses: float32 ``[S]`` in pieces; norms: float64 ``[S]``; rows: int64 ``[S]``.
            limits: float64 ``[C]``, the clipping norms that the step used; None without privacy.
            drawn: samples of each row; plan: how they were cut.
        """
        self.rows = rows
        self.losses = torch.cat([torch.empty(0), *losses]).double()
        self.nonfinite_by_row += torch.bincount(rows[~norms.isfinite()], minlength=len(drawn))
        self.samples_by_row += torch.tensor(drawn)
        self.tokens += plan.tokens
        self.padded_tokens += plan.padded_tokens
        if limits is not None:
            self.norms, self.above = norms, norms > limits[rows]

    @classmethod
    def merged(cls, clients: int, parts: Sequence[tuple[Tensor, TrainingReport]]) -> TrainingReport:
        """The report of a cohort that trained in several calls: counts add up, and a client's last step is that of the
        last call that it took part in.

        Args:
            clients: of the cohort.
            parts: in the order of the calls, which row of the cohort each row of the call was (int64), and its report.
        """
        whole, last = cls.of(clients), torch.full((clients,), -1)
        for number, (index, report) in enumerate(parts):
            whole.tokens += report.tokens
            whole.padded_tokens += report.padded_tokens
            whole.samples_by_row[index] += report.samples_by_row
            whole.nonfinite_by_row[index] += report.nonfinite_by_row
            last[index] = number
        kept = [report._of(last[index] == number) for number, (index, report) in enumerate(parts)]
        whole.rows = torch.cat([whole.rows, *(index[each.rows] for (index, _), each in zip(parts, kept, strict=True))])
        for name in ("losses", "norms", "above"):
            setattr(whole, name, torch.cat([getattr(whole, name), *(getattr(each, name) for each in kept)]))
        return whole

    def _of(self, wanted: Tensor) -> TrainingReport:
        """The samples of the last step whose row is ``wanted [C]``, without counts."""
        mine = wanted[self.rows]
        norms, above = (each[mine] if len(each) else each for each in (self.norms, self.above))
        return TrainingReport(rows=self.rows[mine], losses=self.losses[mine], norms=norms, above=above)

    def part(self, begin: int, end: int) -> TrainingReport:
        """The report of the rows from ``begin`` to ``end``; tokens remain those of the whole cohort."""
        wanted = torch.zeros(len(self.samples_by_row), dtype=torch.bool)
        wanted[begin:end] = True
        found = self._of(wanted)
        found.rows = found.rows - begin
        found.tokens, found.padded_tokens = self.tokens, self.padded_tokens
        found.samples_by_row = self.samples_by_row[begin:end]
        found.nonfinite_by_row = self.nonfinite_by_row[begin:end]
        return found

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
