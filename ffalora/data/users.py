"""Whose each record is: the people behind the rows, and what is asked of the column that names them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from .spelling import is_whole, name_of, one_spelling
from .validate import RowCheck, column_values, is_missing


@dataclass(frozen=True)
class Owners:
    """Who owns each of n records; several may own one.

    Attributes:
        names: of the users, sorted.
        users: int64, numbers of the owners, record by record.
        starts: int64 ``[n+1]``, where each record's owners begin.
    """

    names: tuple[str, ...]
    users: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, values: Sequence[Any]) -> Owners:
        """Of a column's values: a name a record, or a list of names, each in any spelling.

        Raises:
            ValueError: a record without an owner.
        """
        without = [row for row, value in enumerate(values) if not _each(value) or any(map(is_missing, _each(value)))]
        if without:
            raise ValueError(
                f"{len(without)} records have no owner (first: number {without[0]}); name it, or drop them"
            )
        called = [set(map(name_of, _each(value))) for value in values]
        spelling = one_spelling(name for names in called for name in names)
        named = [sorted({spelling[name] for name in names}) for names in called]
        distinct = sorted({name for names in named for name in names})
        number = {name: i for i, name in enumerate(distinct)}
        starts = np.cumsum([0, *map(len, named)], dtype=np.int64)
        users = np.fromiter((number[name] for names in named for name in names), np.int64, int(starts[-1]))
        return cls(tuple(distinct), users, starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def single(self) -> np.ndarray:
        """The one owner of each record, int64 ``[n]``.

        Raises:
            ValueError: a record has several.
        """
        several = np.flatnonzero(np.diff(self.starts) > 1)
        if len(several):
            raise ValueError(
                f"{len(several)} of {len(self)} records have several owners (first: number {several[0]}), so that one "
                "user would move several users' sums; set privacy.draws to samples, where each owner counts, or leave "
                "such records out"
            )
        return self.users

    def select(self, records: Sequence[int] | np.ndarray) -> Owners:
        """Of some records, in their order; users keep their numbers."""
        rows = np.asarray(records, dtype=np.int64)
        parts = [self.users[self.starts[row] : self.starts[row + 1]] for row in rows.tolist()]
        starts = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        return Owners(self.names, np.concatenate([np.empty(0, dtype=np.int64), *parts]), starts)

    def with_more(self, count: int) -> Owners:
        """These records and ``count`` more, each of a user of its own."""
        first, last = len(self.names), int(self.starts[-1])
        return Owners(
            (*self.names, *(f"another {i}" for i in range(count))),
            np.concatenate([self.users, first + np.arange(count)]),
            np.concatenate([self.starts, last + 1 + np.arange(count)]),
        )

    def fingerprint(self, records: Sequence[int] | np.ndarray) -> str:
        """SHA-256 over whose these records are, in this order."""
        chosen, digest = self.select(records), hashlib.sha256()
        for start, end in pairwise(chosen.starts.tolist()):
            named = "\0".join(self.names[user] for user in chosen.users[start:end].tolist())
            digest.update(f"{end - start} {len(named)} {named}".encode())
        return digest.hexdigest()

    def names_in(self, records: Sequence[int] | np.ndarray) -> list[str]:
        """Sorted names of the users who own any of these records."""
        return [self.names[user] for user in np.unique(self.select(records).users).tolist()]


def check_users(check: RowCheck, parameter: str, column: str) -> None:
    """The column names an owner in each row: a text or a whole number, or a list of them."""
    if not check.has(parameter, column):
        return
    empty, wrong = [], []
    for row, value in enumerate(column_values(check.data, column)):
        each = _each(value)
        if not each or any(map(is_missing, each)):
            empty.append(row)
        elif not all(isinstance(v, str | int) or is_whole(v) for v in each):
            wrong.append(row)
    if empty:
        check.empty.setdefault(f"{parameter}={column!r}", []).extend(empty)
    if wrong:
        check.refuse(
            parameter, column, wrong, "must hold names or whole numbers, choose another column; it does not in"
        )


def _each(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
