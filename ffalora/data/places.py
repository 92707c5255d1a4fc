"""Where rows stand, in the words of whoever has to look for them: files and their lines, or numbers of rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .files import Part

_SHOWN = 8


class Places:
    """Places of the rows of one split.

    Args:
        parts: the files that its rows come from, in their order; none where there are no files.
        rows: which of their rows these are; None for all, in their order.
    """

    def __init__(self, parts: Sequence[Part] = (), rows: np.ndarray | None = None):
        self._parts, self._rows = parts, rows
        self._names: list[str] | None = None

    def select(self, rows: Sequence[int] | np.ndarray) -> Places:
        """The places of some of these rows, as ``Dataset.select`` keeps them."""
        chosen = np.asarray(rows, dtype=np.int64)
        return Places(self._parts, chosen if self._rows is None else self._rows[chosen])

    def __call__(self, rows: Sequence[int]) -> str:
        """The first few of these rows in words: ``lines 4, 9 of a.csv; line 3 of b.csv``."""
        names = self._names = self._names or self._named()
        shown = sorted(int(row if self._rows is None else self._rows[row]) for row in rows)[:_SHOWN]
        if not names:
            found = [_counted("row", [str(row) for row in shown]) + " (counted from 0)"]
        else:
            by_file: dict[tuple[str, str], list[str]] = {}
            for row in shown:
                kind, number, file = names[row].split(" ", 2)
                by_file.setdefault((kind, file), []).append(number)
            found = [f"{_counted(kind, numbers)} of {file}" for (kind, file), numbers in by_file.items()]
        return "; ".join(found) + (f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else "")

    def _named(self) -> list[str]:
        """``line 4 a.csv`` for each row."""
        names = []
        for part in self._parts:
            lines = part.lines()
            exact = lines is not None and len(lines) == part.rows
            numbers = lines if lines is not None and exact else range(1, part.rows + 1)
            names += [f"{'line' if exact else 'row'} {number} {part.file.name}" for number in numbers]
        return names


def _counted(kind: str, numbers: Sequence[str]) -> str:
    return f"{kind}{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
