"""Cutting rows into train, validation and test: the same rows on every machine, and no group on both sides of a cut."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from .errors import DataError

ROLES = ("train", "validation", "test")
DEFAULT_FRACTIONS = (0.8, 0.1, 0.1)
FEWEST_ROWS = 2  # of a split
ALL = "all"  # the name of rows that their source assigns to no split


def check_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    """Train, validation and test fractions: three numbers, train positive, none negative, sum one."""
    values = tuple(float(value) for value in fractions)
    if len(values) != 3 or values[0] <= 0 or min(values) < 0 or abs(sum(values) - 1) > 1e-6:
        raise DataError(f"fractions={list(fractions)}: give train, validation and test, e.g. [0.8, 0.1, 0.1]; sum 1")
    return values[0], values[1], values[2]


def hash_order(keys: Sequence[Hashable], seed: int) -> list[Hashable]:
    """Distinct keys in the order of a keyed BLAKE2b hash: depends on each key and the seed, on nothing else."""
    distinct = list(dict.fromkeys(keys))
    salt = int(seed).to_bytes(8, "little", signed=True)
    return sorted(distinct, key=lambda key: hashlib.blake2b(str(key).encode(), digest_size=16, key=salt).digest())


def split_rows(keys: Sequence[Hashable], fractions: Sequence[float], seed: int) -> dict[str, np.ndarray]:
    """Row numbers (int64, ascending) of train, validation and test.

    Rows with equal ``keys`` stay together: duplicates of a text, questions about one document, sentences of one review.
    Groups are taken in hash order, first for test, then for validation, until each has its fraction of the rows (to
    within half a group); the rest is train. A role of fraction 0 is left out.
    """
    _, validation, test = check_fractions(fractions)
    rows: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    wanted = {"test": test * len(keys), "validation": validation * len(keys)}
    taken: dict[str, list[int]] = {role: [] for role in ROLES}
    for key in hash_order(keys, seed):
        group = rows[key]
        role = next((name for name, size in wanted.items() if len(taken[name]) + len(group) / 2 <= size), "train")
        taken[role] += group
    return {role: np.sort(np.array(part, dtype=np.int64)) for role, part in taken.items() if part or role == "train"}


def joined(*memberships: Sequence[Iterable[str]]) -> list[str]:
    """A key for each row: equal where rows share a name in any of the memberships, or are linked by others that do.

    Args:
        memberships: of each kind (groups, users), the names of every row.

    Returns:
        the least name of the first kind that is linked to the row.
    """
    leader: dict[tuple[int, str], tuple[int, str]] = {}

    def leader_of(name: tuple[int, str]) -> tuple[int, str]:
        while leader.setdefault(name, name) != name:
            leader[name] = name = leader[leader[name]]
        return name

    rows = [
        [(kind, name) for kind, names in enumerate(row) for name in names] for row in zip(*memberships, strict=True)
    ]
    for names in rows:
        for name in names:
            first, other = sorted((leader_of(names[0]), leader_of(name)))
            leader[other] = first
    return [leader_of(names[0])[1] for names in rows]


def sample_rows(rows: int, limit: int | None, seed: int) -> np.ndarray:
    """At most ``limit`` of ``rows`` row numbers, drawn without replacement from ``seed``, ascending."""
    if limit is None:
        return np.arange(rows, dtype=np.int64)
    if limit < 1:
        raise DataError(f"max_samples={limit}: must be at least 1, or left out for all rows")
    return np.sort(mix_rows(rows, seed)[:limit])


def mix_rows(rows: int, seed: int) -> np.ndarray:
    """All row numbers (int64) in an order drawn from ``seed``."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed))).permutation(rows).astype(np.int64)
