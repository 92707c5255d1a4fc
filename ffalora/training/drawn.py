"""What a step draws and clips: samples, each by itself, or users, each with some of theirs, whose sum is clipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..config import PrivacyConfig
from ..data.users import Owners
from ..privacy.sampling import Indices, records_of
from .batches import PhysicalBatches, grouped_batches, packed_batches, physical_batches
from .workers import Workers


class Drawn:
    """A step draws samples, each of which is clipped by itself (where anything is).

    Samples are given as indices into the data, ``samples [S]``; ``segments [S]`` are equal for those that are
    differentiated together, and rise with ``rows [S]``, whose each sample is.
    """

    def count(self, samples: np.ndarray) -> int:
        """How many a step draws from: what a ledger calls ``dataset_size``."""
        return len(samples)

    def records(self, samples: np.ndarray, drawn: Indices, some: Callable[[int, int, int], Indices]) -> np.ndarray:
        """The samples of a logical batch.

        Args:
            samples: all of a client; drawn: numbers below ``count(samples)``.
            some: draws a part of a user's samples (``Draw.some`` of this client and step).
        """
        return samples[drawn]

    def segments(self, rows: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Which samples of a logical batch must pass together: any of a row."""
        return rows

    def cut(
        self, lengths: np.ndarray, segments: np.ndarray, budget: int, most: int | None, packed: bool
    ) -> PhysicalBatches:
        """A logical batch in physical ones of at most ``budget`` tokens and ``most`` segments."""
        return (packed_batches if packed else physical_batches)(lengths, budget, max_samples=most)

    def share(self, lengths: np.ndarray, segments: np.ndarray, workers: Workers) -> np.ndarray:
        """Positions of the samples that this one of several processes differentiates."""
        return workers.share(lengths)

    def rows_of_losses(self, rows: np.ndarray, segments: np.ndarray) -> np.ndarray:
        """Whose each loss of a physical batch is: there is one a sample."""
        return rows


@dataclass(frozen=True)
class DrawnUsers(Drawn):
    """A step draws users, and at most ``most`` samples of each: a user's are one segment.

    Attributes:
        owner: ``[n]``, whose each sample of the data is.
    """

    owner: np.ndarray
    most: int

    def count(self, samples: np.ndarray) -> int:
        return len(np.unique(self.owner[samples]))

    def records(self, samples: np.ndarray, drawn: Indices, some: Callable[[int, int, int], Indices]) -> np.ndarray:
        return samples[records_of(drawn, self.owner[samples], self.most, some)]

    def segments(self, rows: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Those of a user of a row."""
        owner = self.owner[samples]
        return np.unique(rows * (int(owner.max(initial=0)) + 1) + owner, return_inverse=True)[1]

    def cut(
        self, lengths: np.ndarray, segments: np.ndarray, budget: int, most: int | None, packed: bool
    ) -> PhysicalBatches:
        return grouped_batches(lengths, segments, budget, most, packed)

    def share(self, lengths: np.ndarray, segments: np.ndarray, workers: Workers) -> np.ndarray:
        """All of a user's go to one process."""
        whose = np.unique(segments, return_inverse=True)[1]
        return np.flatnonzero(np.isin(whose, workers.share(np.bincount(whose, lengths))))

    def rows_of_losses(self, rows: np.ndarray, segments: np.ndarray) -> np.ndarray:
        """There is one a user."""
        return rows[np.unique(segments, return_index=True)[1]]


def drawn_units(privacy: PrivacyConfig, owners: Owners | None) -> Drawn:
    """What the steps of a configuration draw.

    Args:
        owners: whose each sample is.

    Raises:
        ValueError: users are drawn, and whose the samples are is not known, or a sample has several owners.
    """
    if not privacy.draws_users:
        return Drawn()
    if owners is None:
        raise ValueError(
            "privacy.unit='user', but whose the samples are is not known; name the column in data.user, or give "
            "owners=Owners.of(…)"
        )
    return DrawnUsers(owners.single, privacy.samples_per_user)
