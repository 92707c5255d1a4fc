"""One client as the training loop sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..privacy.accounting import PrivacyLedger
from ..privacy.clipping import AdaptiveQuantileClipping


@dataclass
class Participant:
    """One client as the engine sees it.

    Attributes:
        client_id: persistent; sampling and noise depend on it, never on the row.
        samples: indices of its samples in the engine's data.
        ledger: what it may spend; None trains without privacy.
        steps_taken: logical steps over its whole life.
        lr: its learning rate, where it differs from the configuration's.
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
    max_grad_norm: float | None = None
    adaptive: AdaptiveQuantileClipping | None = None
    run: int = 0
