"""Directions of canaries: far from each other, and as long as clipping allows in every group of columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..adapters import Layout

#: Columns of a group for each direction, below which directions share columns instead of having one of their own.
_OWN = 4
#: Fewer columns than that hold no directions that can be told apart.
_LEAST = 64


@dataclass(frozen=True)
class Directions:
    """``m`` directions. In a large group of columns each has a column of its own; in a smaller one each has random
    signs on all of them, which for so many columns are nearly orthogonal.

    Attributes:
        columns: int64 ``[B,m]``, of the B large groups; shares: of the clipping norm, float each.
        patterns: of every other group its columns, int64 ``[size]``, float32 ``[m,size]`` of unit rows, and its share.
    """

    columns: NDArray[np.int64]
    shares: tuple[float, ...]
    patterns: tuple[tuple[Tensor, Tensor, float], ...] = ()

    @classmethod
    def draw(
        cls, layout: Layout, starts: Sequence[int], shares: Sequence[float], count: int, rng: np.random.Generator
    ) -> Directions:
        """At most ``count`` directions for the columns of a layout.

        Args:
            starts: where each group begins that is clipped by itself; shares: of C², one a group.
        """
        every = np.concatenate([np.arange(place.start, place.start + place.size) for place in layout.places])
        groups = np.split(every, np.searchsorted(every, starts[1:]))
        lengths = np.sqrt(np.array(shares) / sum(shares)).tolist()
        count = min(count, max(map(len, groups)) // _OWN)
        columns, own, patterns = [], [], []
        for group, length in zip(groups, lengths, strict=True):
            if len(group) >= _OWN * count:
                columns.append(rng.choice(group, count, replace=False))
                own.append(length)
            elif len(group) >= _LEAST:
                signs = rng.choice(np.array([-1.0, 1.0], dtype=np.float32), (count, len(group)))
                patterns.append((torch.from_numpy(group), torch.from_numpy(signs) / len(group) ** 0.5, length))
        return cls(np.array(columns, dtype=np.int64), tuple(own), tuple(patterns))

    def __len__(self) -> int:
        return self.columns.shape[1]

    @property
    def strength(self) -> float:
        """How long a clipped direction is, over the clipping norm: below 1 where a group is too small for any."""
        return math.hypot(*self.shares, *(share for *_, share in self.patterns))

    def gradients(self, which: NDArray[np.int64], lengths: Tensor, width: int) -> Tensor:
        """Float32 ``[k,width]``: directions ``which`` (``[k]``), in each group as long as ``lengths`` (``[k]``)."""
        found, rows = torch.zeros(len(which), width), torch.arange(len(which))
        for columns in self.columns:
            found[rows, torch.from_numpy(columns[which])] = lengths
        for columns, pattern, _ in self.patterns:
            found[:, columns] = pattern[torch.from_numpy(which)] * lengths[:, None]
        return found

    def along(self, seen: Tensor) -> NDArray[np.float64]:
        """How many of each clipped direction, of clipping norm 1, are in rows ``[C,P]``: float64 ``[C,m]``."""
        seen, found = seen.double().cpu(), torch.zeros(len(seen), len(self), dtype=torch.float64)
        for columns, share in zip(self.columns, self.shares, strict=True):
            found += share * seen[:, torch.from_numpy(columns)]
        for columns, pattern, share in self.patterns:
            found += share * (seen[:, columns] @ pattern.double().T)
        return (found / self.strength**2).numpy()
