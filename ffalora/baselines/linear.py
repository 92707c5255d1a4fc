"""A linear classifier on features: what all baselines but the majority end in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearClassifier:
    """``logits = x weightᵀ + bias``.

    Attributes:
        weight: float32 ``[L,D]``, one row a class (one row for a number).
        bias: float32 ``[L]``.
    """

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Float32 ``[n,L]`` of features ``[n,D]``."""
        return torch.addmm(self.bias, features, self.weight.T)

    def predict(self, features: Tensor) -> Tensor:
        """The likeliest class of each row, int64 ``[n]``."""
        return self.logits(features).argmax(1)

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share of the rows of ``features [n,D]`` whose prediction is their label, int64 ``[n]``.

        Raises:
            ValueError: nothing to predict.
        """
        if not len(features):
            raise ValueError("features has no rows: there is nothing to compute an accuracy of")
        return float((self.predict(features) == labels).double().mean())
