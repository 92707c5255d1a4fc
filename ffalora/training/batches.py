"""A logical batch cut into physical ones that fit in memory. How it is cut changes neither clipping nor noise nor the
accounting.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    longest = int(descending.max(initial=0))
    whole = count * longest
    fits = count * max(longest, 1) <= token_budget and (max_samples is None or count <= max_samples)
    if count and fits and whole - int(length.sum()) <= overhead:  # no cut could save as much as it costs
        return PhysicalBatches((order,), int(length.sum()), whole)
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


def grouped_batches(
    lengths: NDArray[np.integer] | list[int],
    groups: NDArray[np.integer],
    token_budget: int,
    max_groups: int | None = None,
    packed: bool = False,
) -> PhysicalBatches:
    """Cuts a logical batch into physical ones that hold whole groups: those with the longest samples first, each batch
    as full as this order allows.

    Args:
        lengths: tokens of each sample, ``[S]``; may be empty.
        groups: ``[S]``, equal where samples must stay together.
        token_budget: most tokens in one physical batch, padding included unless ``packed``. A larger group is a batch
            of its own.
        max_groups: most groups in one physical batch.
    """
    length = np.asarray(lengths, dtype=np.int64).reshape(-1)
    _check_limits(length, token_budget, max_groups)
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    longest, tokens = np.zeros(len(counts), dtype=np.int64), np.zeros(len(counts), dtype=np.int64)
    np.maximum.at(longest, group, length)
    np.add.at(tokens, group, length)
    parts: list[list[int]] = []
    samples = held = 0
    for one in np.argsort(-longest, kind="stable").tolist():
        samples, held = samples + int(counts[one]), held + int(tokens[one])
        is_full = not parts or len(parts[-1]) == max_groups
        if is_full or _cost(samples, held, longest[parts[-1][0]], packed) > token_budget:
            parts.append([])
            samples, held = int(counts[one]), int(tokens[one])
        parts[-1].append(one)
    batches = tuple(np.flatnonzero(np.isin(group, part)).astype(np.int64) for part in parts)
    padded = sum(_cost(len(b), int(length[b].sum()), int(length[b].max()), packed) for b in batches)
    return PhysicalBatches(batches, int(length.sum()), padded)


def groups_of(users: NDArray[np.integer] | None, batches: Sequence[NDArray[np.integer]]) -> list[Indices | None]:
    """For each physical batch, given as indices of samples, which of them are one user's: ``[S]``, rising.

    Args:
        users: whose each sample is, by index; None where every sample is kept apart, and so is every answer.

    Raises:
        ValueError: a user's samples are in two batches, or do not lie side by side.
    """
    if users is None:
        return [None] * len(batches)
    found: list[Indices | None] = []
    seen: list[int] = []
    for samples in batches:
        owner = users[samples]
        starts = np.flatnonzero(np.append(True, owner[1:] != owner[:-1])[: len(owner)])
        seen += owner[starts].tolist()
        found.append(np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(owner)))).astype(np.int64))
    if len(set(seen)) < len(seen):
        again = next(user for user in seen if seen.count(user) > 1)
        raise ValueError(
            f"the samples of user {again} are in two physical batches, or not side by side in one, so that they would "
            "be clipped apart and move the sum by twice the norm; cut with grouped_batches, and sort a batch by user"
        )
    return found


def _cost(samples: int, tokens: int, longest: int, packed: bool) -> int:
    return tokens if packed else samples * int(longest)


def _check_limits(length: NDArray[np.int64], token_budget: int, max_samples: int | None) -> None:
    if token_budget < 1 or (max_samples is not None and max_samples < 1):
        raise ValueError(f"token_budget and max_samples must be at least 1, got {token_budget} and {max_samples}")
    if length.size and length.min() < 0:
        raise ValueError(f"lengths must not be negative, got {int(length.min())}")
