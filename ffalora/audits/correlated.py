"""Canaries under correlated noise: what a client released is multiplied by the factor, after which its noise is
independent, and matched with what a canary of that turn would have added.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from ..privacy.correlation import Correlation, records_of_turn


def turns_of(correlation: Correlation, seed: int, client_id: int, n: int) -> NDArray[np.int64]:
    """The first step in which each of a client's n records may take part, int64 ``[n]``; which is public."""
    found = np.zeros(n, dtype=np.int64)
    for turn in range(correlation.separation):
        found[records_of_turn(seed, client_id, turn, n, correlation.separation)] = turn
    return found


def matched_scores(correlation: Correlation, released: NDArray, turns: NDArray[np.int64]) -> NDArray:
    """How much of each canary is in what was released, in units of a canary's and of the noise's deviation alike.

    Args:
        released: float64 ``[T,m]``, of each step the coordinate of each canary, over the clipping norm.
        turns: ``[m]``, from :func:`turns_of`.
    """
    taken = np.arange(len(released))[:, None] % correlation.separation == turns
    weights = _times(correlation, taken.astype(np.float64))
    lengths = np.linalg.norm(weights, axis=0)
    return (weights * _times(correlation, released)).sum(axis=0) / np.where(lengths > 0, lengths, 1.0)


def sound_scores(
    correlation: Correlation,
    turns: NDArray[np.int64],
    steps: int,
    sample_rate: float,
    sigma: float,
    rng: np.random.Generator,
    included: NDArray,
) -> NDArray:
    """Scores of a sound run: of canaries that are in and drawn in their turns, with noise of the factor's length.

    Args:
        turns: ``[m]``; steps: that were taken; included: bool ``[m]``.
    """
    rate = correlation.release_rate(sample_rate)
    taken = np.arange(steps)[:, None] % correlation.separation == turns
    drawn = taken & included & (rng.random(taken.shape) < rate)
    noise = sigma * correlation.sensitivity * rng.standard_normal(len(turns))
    return matched_scores(correlation, drawn.astype(np.float64), turns) + noise


def _times(correlation: Correlation, columns: NDArray) -> NDArray:
    """C times some columns."""
    return lfilter(correlation.coefficients()[: len(columns)], [1.0], columns, axis=0)
