"""The largest class: what a result must beat before anything else is said about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Majority:
    """Always the same class.

    Attributes:
        label: the class.
        accuracy: its share of the labels that are predicted.
        chosen_by: 'test split', or 'public knowledge'.
    """

    label: int
    accuracy: float
    chosen_by: str


def majority(test_labels: Tensor | np.ndarray, public_label: int | None = None) -> Majority:
    """The accuracy of always answering with the largest class.

    Counts of the clients' labels are private, so the class is either public knowledge or, where there is none, the
    largest class of the test split itself: the best that any constant can do there.

    Args:
        test_labels: int ``[n]``, of the split on which results are reported.
        public_label: the class that is known without looking at anybody's data to be the largest.

    Raises:
        ValueError: no labels.
    """
    labels = np.asarray(test_labels)
    if not len(labels):
        raise ValueError("test_labels is empty: there is nothing to compute an accuracy of")
    if public_label is None:
        values, counts = np.unique(labels, return_counts=True)
        return Majority(int(values[counts.argmax()]), float(counts.max() / len(labels)), "test split")
    return Majority(int(public_label), float((labels == public_label).mean()), "public knowledge")
