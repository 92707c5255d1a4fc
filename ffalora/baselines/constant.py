"""The largest class, and the mean of numbers: what a result must beat before anything else is said about it."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def majority(test_labels: Tensor | np.ndarray) -> tuple[int, float]:
    """The class that is largest in the split on which results are reported, and its share there.

    Counts of the clients' labels are private; this is the best that any constant can do without them.

    Args:
        test_labels: int ``[n]``.

    Raises:
        ValueError: no labels.
    """
    labels = np.asarray(test_labels)
    if not len(labels):
        raise ValueError("test_labels is empty: there is nothing to compute an accuracy of")
    values, counts = np.unique(labels, return_counts=True)
    return int(values[counts.argmax()]), float(counts.max() / len(labels))


def mean_label(test_labels: Tensor | np.ndarray) -> tuple[float, float]:
    """The mean of the numbers in the split on which results are reported, and the mean squared error of answering it
    every time: the least that any constant has.

    Args:
        test_labels: floating ``[n]``.

    Raises:
        ValueError: no labels.
    """
    labels = np.asarray(test_labels, dtype=np.float64)
    if not len(labels):
        raise ValueError("test_labels is empty: there is nothing to compute an error of")
    return float(labels.mean()), float(labels.var())
