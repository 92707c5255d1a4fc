"""What is protected in a batch, and what a batch is without one of it: samples, or users with all of theirs."""

from __future__ import annotations

import numpy as np

from ..data.users import Owners
from .admission import ledger_of
from .participant import Participant
from .setup import TrainingSetup


def without_sample(batch: np.ndarray, sample: int) -> np.ndarray:
    """The batch without one sample."""
    return batch[batch != sample]


class Units:
    """What a participant's ledger protects (a step may draw something else: see ``drawn``).

    Attributes:
        owners: whose each sample is, where users are protected; None where samples are.
        group: most samples of one unit that are drawn and clipped apart.
    """

    def __init__(self, setup: TrainingSetup, participant: Participant):
        self.samples, self._most = participant.samples, setup.privacy.samples_per_user
        self.owners = setup.owners if setup.privacy.unit == "user" else None
        self.group = 1 if self.owners is None else ledger_of(participant).group
        self._whose = None if self.owners is None else self.owners.select(self.samples)

    def in_batch(self, batch: np.ndarray) -> np.ndarray:
        """The units that a batch holds."""
        return batch if self.owners is None else np.unique(self.owners.select(batch).users)

    def without(self, batch: np.ndarray, unit: int) -> np.ndarray:
        """The batch without one of them."""
        if self.owners is None:
            return without_sample(batch, unit)
        return batch[~_owned(self.owners.select(batch), unit)]

    def of(self, unit: int) -> np.ndarray:
        """Samples of a unit that a step may draw together."""
        return np.array([unit]) if self._whose is None else self.samples[_owned(self._whose, unit)][: self._most]


def _owned(whose: Owners, user: int) -> np.ndarray:
    """bool, by record: whether the user is among its owners."""
    return np.add.reduceat(np.append(whose.users == user, False).astype(np.int64), whose.starts[:-1]) > 0
