"""One client as the training loop sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..privacy.accounting import PrivacyLedger
from ..privacy.clipping import AdaptiveQuantileClipping, sensitivity
from ..privacy.correlated_noise import CorrelatedNoise


@dataclass
class Participant:
    """One client as the engine sees it.

    Attributes:
        client_id: persistent; sampling and noise depend on it, never on the row.
        samples: indices of its samples in the engine's data.
        ledger: what it may spend; None trains without privacy.
        steps_taken: logical steps over its whole life.
        lr: its learning rate, where it differs from the configuration's.
        head_lr: that of a trained head, where it is not ``lr`` times the configuration's factor.
        max_grad_norm: its clipping norm, likewise.
        adaptive: the policy that moves its clipping norm after each step; None keeps the norm.
        run: which of several simulated runs it belongs to, where these train on one engine: a client that takes part in
            two of them draws the same samples and the same noise in both, as it would if they were trained apart.
        correlated: what its next step's noise depends on, where its ledger is for correlated noise; None until then.
    """

    client_id: int
    samples: np.ndarray
    ledger: PrivacyLedger | None = None
    steps_taken: int = 0
    lr: float | None = None
    head_lr: float | None = None
    max_grad_norm: float | None = None
    adaptive: AdaptiveQuantileClipping | None = None
    run: int = 0
    correlated: CorrelatedNoise | None = None

    def clipping_norm(self, usual: float) -> float:
        """C of the next step: the policy's, its own, or the ``usual`` one."""
        if self.adaptive is not None:
            return self.adaptive.max_grad_norm
        return usual if self.max_grad_norm is None else self.max_grad_norm

    def noise_std(self, clipping_norm: float) -> float:
        """σ·C(1+η): the noise hides what one sample can change in the sum as it is computed; 0 without a ledger.
        Correlated noise hides what it can change in a release of many sums.
        """
        if self.ledger is None:
            return 0.0
        if self.ledger.correlation is not None:
            clipping_norm *= self.ledger.correlation.sensitivity
        sigma = self.ledger.noise_multiplier if self.adaptive is None else self.adaptive.sum_noise_multiplier
        return sigma * sensitivity(clipping_norm, self.ledger.dataset_size)

    def begin_noise(self, width: int, device: torch.device, seeded: bool) -> None:
        """Makes the buffers of correlated noise, where they are needed and not there, or are of another step than comes
        next; what was begun with others is charged as a whole.

        Args:
            width: P, of the state; seeded: noise follows from a seed, so that it can and must go on as it began.

        Raises:
            ValueError: seeded noise of earlier steps is forgotten.
        """
        if self.ledger is None or self.ledger.correlation is None:
            return
        if self.correlated is not None and self.correlated.step == self.steps_taken:
            return
        if seeded and self.steps_taken:
            raise ValueError(
                f"client {self.client_id} has taken {self.steps_taken} steps, but the noise that its next one depends "
                "on is not there; restore both from one checkpoint"
            )
        self.ledger.begin_anew()
        self.correlated = CorrelatedNoise.begin(self.ledger.correlation, width, device, self.steps_taken)
