"""What a private Trainer iterates over, and what it asks of its samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import Dataset


def lengths_of(features: list[Any]) -> list[int]:
    """Tokens of each sample; 1 where it has none."""
    return [len(f["input_ids"]) if "input_ids" in f else 1 for f in features]


def classes_of(features: list[Any], name: str) -> np.ndarray | None:
    """The labels where each sample has one number."""
    labels = [f.get(name) if hasattr(f, "get") else None for f in features]
    return np.array(labels) if all(label is not None and np.ndim(label) == 0 for label in labels) else None


class LogicalSteps(Dataset):
    """What the Trainer iterates over: the numbers of an epoch's logical steps."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"step": index}
