"""What happened while a cohort trained, sample by sample of each client's last step."""

from __future__ import annotations

import torch
from torch import Tensor

from .batches import PhysicalBatches
from .workers import Workers


class TrainingReport:
    """What happened in calls of ``Engine.train``; numbers marked private are computed on private data without noise.

    Args:
        clients: rows of the cohort.

    Attributes:
        samples: int64 ``[C]``, drawn and passed through the model, by row of the cohort. Where users are drawn, these
            are counted here and below; a user's loss is the mean of its samples'.
        tokens, padded_tokens: of all these samples, without and with the padding of their passes.
        nonfinite: int64 ``[C]``, samples whose gradient held NaN or Inf and contributed zero (private). Without
            privacy the samples of a physical batch share a client's gradient.
        rows: int64 ``[S]``, whose sample each of the clients' last logical steps is.
        losses, norms: float64 ``[S]``, of these samples (private); norms are empty without privacy.
        above: bool ``[S]``, which of those norms were above the clipping norm (private).
        rejected: clients whose row came back with NaN or Inf and was left out.
        dropped: clients that vanished before their row arrived; they have spent the steps they took.
    """

    def __init__(self, clients: int):
        self.tokens = self.padded_tokens = 0
        self.samples, self.nonfinite = torch.zeros(2, clients, dtype=torch.int64)
        self.rows, self.above = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.bool)
        self.losses, self.norms = torch.empty(2, 0, dtype=torch.float64)
        self.rejected: list[int] = []
        self.dropped: list[int] = []

    def add_step(
        self, index: Tensor, rows: Tensor, losses: Tensor, norms: Tensor, limits: Tensor | None, plan: PhysicalBatches
    ) -> None:
        """Adds the counts of a logical step, and makes it the last one of those who took it.

        Args:
            index: int64 ``[c]``, the row here of each client that took the step.
            rows: int64 ``[S]``, whose each sample is, among them; losses: float32 and norms: float64, ``[S]``.
            limits: float64 ``[c]``, the clipping norms that the step used; None without privacy.
            plan: how the samples were cut.
        """
        own, others = index[rows], ~torch.isin(self.rows, index)
        self.samples += torch.bincount(own, minlength=len(self.samples))
        self.nonfinite += torch.bincount(own[~norms.isfinite()], minlength=len(self.samples))
        self.tokens += plan.tokens
        self.padded_tokens += plan.padded_tokens
        if limits is not None:
            self.norms = torch.cat([self.norms[others], norms])
            self.above = torch.cat([self.above[others], norms > limits[rows]])
        self.losses = torch.cat([self.losses[others], losses.double()])
        self.rows = torch.cat([self.rows[others], own])

    def of_all(self, workers: Workers) -> TrainingReport:
        """The reports of all processes as one: each passed a share of the samples through the model."""
        if workers.size == 1:
            return self
        reports = workers.gather(self)
        found = TrainingReport(len(self.samples))
        for name in ("tokens", "padded_tokens", "samples", "nonfinite"):
            setattr(found, name, sum(getattr(each, name) for each in reports))
        for name in ("rows", "above", "losses", "norms"):
            setattr(found, name, torch.cat([getattr(each, name) for each in reports]))
        return found

    def part(self, begin: int, end: int) -> TrainingReport:
        """The report of the rows from ``begin`` to ``end``; tokens remain those of the whole cohort."""
        found, own = TrainingReport(end - begin), (self.rows >= begin) & (self.rows < end)
        found.tokens, found.padded_tokens = self.tokens, self.padded_tokens
        found.samples, found.nonfinite = self.samples[begin:end], self.nonfinite[begin:end]
        found.rows, found.losses = self.rows[own] - begin, self.losses[own]
        if len(self.norms):
            found.norms, found.above = self.norms[own], self.above[own]
        return found

    @property
    def padding(self) -> float:
        """The share of padding in what was computed."""
        return 1.0 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0

    def numbers(self) -> dict[str, float | int | None]:
        """What a simulation writes down of the last logical steps: mean loss, median of the finite norms and the share
        of them above the clipping norm; of all steps, samples, those that were not finite, and the share of padding in
        what was computed. None where there is nothing to tell, or it is not finite.
        """
        finite = self.norms.isfinite()
        means = {"train_loss": self.losses.mean(), "median_norm": self.norms[finite].median()}
        return {name: round(float(value), 6) if bool(value.isfinite()) else None for name, value in means.items()} | {
            "clipped": round(float(self.above[finite].double().mean()), 4) if bool(finite.any()) else 0.0,
            "nonfinite": int(self.nonfinite.sum()),
            "padding": round(self.padding, 4),
            "samples": int(self.samples.sum()),
        }
