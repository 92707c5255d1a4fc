"""What a step draws and clips: samples, each by itself, or users, each with some of theirs, whose sum is clipped.

Samples are given as indices into the data, ``samples [S]``; ``segments [S]`` are equal for those that are
differentiated together, and rise with ``rows [S]``, whose each sample is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..config import PrivacyConfig
from ..data.users import Owners
from ..privacy.sampling import Indices, records_of
from .workers import Workers


@dataclass(frozen=True)
class DrawnUsers:
    """A step draws users, and at most ``most`` samples of each: a user's are one segment.

    Attributes:
        owner: ``[n]``, whose each sample of the data is.
    """

    owner: np.ndarray
    most: int

    def count(self, samples: np.ndarray) -> int:
        """How many users own these samples."""
        return len(np.unique(self.owner[samples]))

    def records(self, samples: np.ndarray, drawn: Indices, some: Callable[[int, int, int], Indices]) -> np.ndarray:
        """The samples of a logical batch.

        Args:
            samples: all of a client; drawn: numbers of users, below ``count(samples)``.
            some: draws a part of a user's samples (``Draw.some`` of this client and step).
        """
        return samples[records_of(drawn, self.owner[samples], self.most, some)]

    def segments(self, rows: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Which samples of a logical batch must pass together: those of a user of a row."""
        owner = self.owner[samples]
        return np.unique(rows * (int(owner.max(initial=0)) + 1) + owner, return_inverse=True)[1]

    def share(self, lengths: np.ndarray, segments: np.ndarray, workers: Workers) -> np.ndarray:
        """Positions of the samples that this one of several processes differentiates: all of a user's go to one."""
        whose = np.unique(segments, return_inverse=True)[1]
        return np.flatnonzero(np.isin(whose, workers.share(np.bincount(whose, lengths))))


def drawn_users(privacy: PrivacyConfig, owners: Owners | None) -> DrawnUsers | None:
    """The users that the steps of a configuration draw; None where they draw samples.

    Args:
        owners: whose each sample is.

    Raises:
        ValueError: users are drawn, and whose the samples are is not known, or a sample has several owners.
    """
    if not privacy.draws_users:
        return None
    if owners is None:
        raise ValueError(
            "privacy.unit='user', but whose the samples are is not known; name the column in data.user, or give "
            "owners=Owners.of(…)"
        )
    return DrawnUsers(owners.single, privacy.samples_per_user)


def count_drawn(privacy: PrivacyConfig, owners: Owners | None, samples: np.ndarray) -> int:
    """How many a step draws from where a client holds these samples: what a ledger calls ``dataset_size``."""
    users = drawn_users(privacy, owners)
    return len(samples) if users is None else users.count(samples)
