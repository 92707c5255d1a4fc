"""The training loop of a cohort: sample, differentiate once, clip, add noise, step.

Every client of a cohort is one row of the state ``[C,P]``. A logical step draws each client's samples, passes them
through the model together, and updates all rows at once; without privacy the same loop runs with clipping and noise
switched off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..privacy.noise import SeededNoise
from .admission import check_cohort
from .optim import Moments
from .participant import Participant
from .report import TrainingReport
from .setup import TrainingSetup
from .step import LogicalStep
from .workers import check_same_state, drawn_alike


class Engine(TrainingSetup):
    """Trains cohorts of clients on one model; see :class:`TrainingSetup` for what it is made of."""

    def train(
        self,
        cohort: Sequence[Participant],
        state: Tensor,
        steps: int,
        anchor: Tensor | None = None,
        mu: float = 0.0,
        moments: Moments | None = None,
        lr_factors: Sequence[float] | None = None,
        mask: Tensor | None = None,
        on_step: Callable[[int], None] | None = None,
        report: TrainingReport | None = None,
        index: Tensor | None = None,
        first: int | None = None,
    ) -> TrainingReport:
        """``steps`` logical steps of every client of the cohort, from and into its row of ``state``.

        Args:
            cohort: one participant a row.
            state: float32 ``[C,P]``, changed in place.
            anchor: float32 ``[C,P]``, the point of the proximal term; mu: its strength (FedProx).
            moments: of the local optimiser, one row a client, changed in place; None starts from zero and forgets.
            lr_factors: what the learning rate is multiplied with in each step; None leaves it.
            mask: bool ``[C,P]``, columns that a client has (clients of a smaller rank lack some); the others stay zero.
            on_step: called after each logical step with its number.
            report: what to add to, where the cohort is a part of a larger one; index: its rows there, int64 ``[C]``.
            first: number of the first of these steps, the same for all who take it, in whichever pass: masks of dropout
                follow from it, too. None counts on from the most steps that one of the cohort has taken.

        Returns:
            The report, by default a fresh one of this cohort, of all processes; a given one is of this process.

        Raises:
            PrivacyBudgetSpent: a client may not take the steps; nothing was charged for the step that was refused.
            ValueError: something that ``admission`` refuses: a tensor outside the state, a ledger that does not fit, …
            GradientMissing: a trained tensor received no gradient.
            StorageParted, UpdateLost: what is trained is not what the model reads, or a step left it as it was.
            SamplesNotIndependent: the model or the loss mixes samples; nothing was charged where two samples show it.
        """
        if len(cohort) != len(state):
            raise ValueError(f"state has {len(state)} rows for {len(cohort)} participants")
        if lr_factors is not None and len(lr_factors) != steps:
            raise ValueError(f"lr_factors has {len(lr_factors)} entries for steps={steps}")
        self.check_model()
        if self.workers.size > 1:
            check_same_state(self.workers, state)
            self.draw = drawn_alike(self.draw, self.workers)
        if self.privacy.at_clients:
            check_cohort(cohort, self.privacy, isinstance(self.noise, SeededNoise), self.owners)
        if self.is_sharded:
            self.token_budget = min(self.workers.gather(self.token_budget or 1))
        if self.privacy.at_clients or self.is_sharded:
            self.look_ahead(cohort)
        if self.privacy.at_clients:
            for participant in cohort:
                participant.begin_noise(state.shape[1], self.device, isinstance(self.noise, SeededNoise))
        moments = moments or Moments.zeros(self.optimizer, len(cohort), state.shape[1], self.device)
        first = max(participant.steps_taken for participant in cohort) if first is None else first
        step = LogicalStep(self, cohort, state, anchor, mu, moments, mask)
        is_part = report is not None
        report = TrainingReport(len(cohort)) if report is None else report
        index = torch.arange(len(cohort)) if index is None else index
        try:
            for number in range(steps):
                if number and on_step is not None:
                    self.check_model()  # which it may have changed
                step.run(report, index, 1.0 if lr_factors is None else lr_factors[number], first + number)
                if on_step is not None:
                    step.finish()
                    on_step(number)
        finally:
            step.finish()
        return report if is_part else report.of_all(self.workers)
