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
    """The units of a batch are its samples."""

    group, name = 1, "sample"

    def in_batch(self, batch: np.ndarray) -> np.ndarray:
        """The units that a batch holds."""
        return batch

    def without(self, batch: np.ndarray, unit: int) -> np.ndarray:
        """The batch without one of them."""
        return without_sample(batch, unit)

    def of(self, unit: int) -> np.ndarray:
        """Samples of a unit that a step may draw together."""
        return np.array([unit])


class Users(Units):
    """The units of a batch are the users who own its samples.

    Args:
        owners: whose each sample is; samples: all of a client; most: of a user in a step.
        group: most samples of one that are drawn and clipped apart.
    """

    name = "user"

    def __init__(self, owners: Owners, samples: np.ndarray, most: int, group: int):
        self.owners, self.samples, self.most, self.group = owners, samples, most, group
        self._whose = owners.select(samples)

    def in_batch(self, batch: np.ndarray) -> np.ndarray:
        return np.unique(self.owners.select(batch).users)

    def without(self, batch: np.ndarray, unit: int) -> np.ndarray:
        return batch[~_owned(self.owners.select(batch), unit)]

    def of(self, unit: int) -> np.ndarray:
        return self.samples[_owned(self._whose, unit)][: self.most]


def _owned(whose: Owners, user: int) -> np.ndarray:
    """bool, by record: whether the user is among its owners."""
    return np.add.reduceat(np.append(whose.users == user, False).astype(np.int64), whose.starts[:-1]) > 0


def units_of(setup: TrainingSetup, participant: Participant) -> Units:
    """What a participant's ledger protects."""
    if setup.owners is None or setup.privacy.unit != "user":
        return Units()
    return Users(setup.owners, participant.samples, setup.privacy.samples_per_user, ledger_of(participant).group)
