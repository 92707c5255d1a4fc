"""One client as the training loop sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..privacy.accounting import PrivacyLedger
from ..privacy.clipping import AdaptiveQuantileClipping, sensitivity


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

    def clipping_norm(self, usual: float) -> float:
        """C of the next step: the policy's, its own, or the ``usual`` one."""
        if self.adaptive is not None:
            return self.adaptive.max_grad_norm
        return usual if self.max_grad_norm is None else self.max_grad_norm

    def noise_std(self, clipping_norm: float) -> float:
        """σ·C(1+η): the noise hides what one sample can change in the sum as it is computed; 0 without a ledger."""
        if self.ledger is None:
            return 0.0
        sigma = self.ledger.noise_multiplier if self.adaptive is None else self.adaptive.sum_noise_multiplier
        return sigma * sensitivity(clipping_norm, self.ledger.dataset_size)
