"""A logical batch cut into physical ones that fit in memory. How it is cut changes neither clipping nor noise nor the
accounting.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..privacy.sampling import Indices


@dataclass(frozen=True)
class PhysicalBatches:
    """A logical batch cut into physical ones.

    Attributes:
        batches: positions into the logical batch, int64, longest samples first; together each position exactly once.
        tokens: tokens of the samples.
        padded_tokens: Σ count × longest, what the passes compute on when padded.
    """

    batches: tuple[Indices, ...]
    tokens: int
    padded_tokens: int

    @property
    def padding(self) -> float:
        """Fraction of the padded tokens that is padding."""
        return 1.0 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0


def physical_batches(
    lengths: NDArray[np.integer] | list[int], token_budget: int, max_samples: int | None = None, overhead: int = 64
) -> PhysicalBatches:
    """Cuts a logical batch, sorted by length, where padding plus the cost of one more pass is least.

    Among all cuts of the sorted batch that keep count × longest within ``token_budget`` it takes one that minimises ``Σ
    (count · longest + overhead)``, by dynamic programming. A sample longer than the budget is a batch of its own. How a
    logical batch is cut changes neither clipping nor noise nor the accounting.

    Args:
        lengths: tokens of each sample, ``[S]``; may be empty.
        token_budget: most padded tokens in one physical batch.
        max_samples: most samples in one physical batch.
        overhead: what one more forward and backward pass costs, in tokens; large values give the fewest batches.
    """
    length = np.asarray(lengths, dtype=np.int64).reshape(-1)
    _check_limits(length, token_budget, max_samples)
    if overhead < 0:
        raise ValueError(f"overhead must not be negative, got {overhead}")
    order = np.argsort(-length, kind="stable").astype(np.int64)
    descending = length[order]
    count = descending.size
    cost = np.zeros(count + 1, dtype=np.int64)  # cost[i]: the cheapest cut of the samples i … (shorter ones)
    stop = np.full(count, count, dtype=np.int64)
    for i in range(count - 1, -1, -1):
        longest = int(descending[i])
        most = max(1, token_budget // max(longest, 1))
        last = min(count, i + (most if max_samples is None else min(most, max_samples)))
        options = np.arange(1, last - i + 1) * longest + cost[i + 1 : last + 1]
        best = options.size - 1 - int(np.argmin(options[::-1]))  # of equal cuts, the one with the larger batch
        stop[i], cost[i] = i + 1 + best, options[best] + overhead
    batches, start = [], 0
    while start < count:
        batches.append(order[start : stop[start]])
        start = int(stop[start])
    padded = sum(int(length[batch].max()) * len(batch) for batch in batches)
    return PhysicalBatches(tuple(batches), int(length.sum()), padded)


def packed_batches(
    lengths: NDArray[np.integer] | list[int], token_budget: int, max_samples: int | None = None
) -> PhysicalBatches:
    """Cuts a logical batch, sorted by length, into physical ones where samples lie end to end, each as full as
    its order allows: there is no padding, so nothing is gained by more of them.

    Args:
        lengths: tokens of each sample, ``[S]``; may be empty. A sample longer than the budget is a batch of its own.
        token_budget: most tokens in one physical batch.
        max_samples: most samples in one physical batch.
    """
    length = np.asarray(lengths, dtype=np.int64).reshape(-1)
    _check_limits(length, token_budget, max_samples)
    order = np.argsort(-length, kind="stable").astype(np.int64)
    batches, start, held = [], 0, 0
    for i, tokens in enumerate(length[order].tolist()):
        if i > start and (held + tokens > token_budget or i - start == max_samples):
            batches.append(order[start:i])
            start, held = i, 0
        held += tokens
    if len(order):
        batches.append(order[start:])
    return PhysicalBatches(tuple(batches), int(length.sum()), int(length.sum()))


def _check_limits(length: NDArray[np.int64], token_budget: int, max_samples: int | None) -> None:
    if token_budget < 1 or (max_samples is not None and max_samples < 1):
        raise ValueError(f"token_budget and max_samples must be at least 1, got {token_budget} and {max_samples}")
    if length.size and length.min() < 0:
        raise ValueError(f"lengths must not be negative, got {int(length.min())}")
