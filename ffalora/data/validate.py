"""Checks of rows before anything is trained on them: all problems of the data in one message, with their places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .errors import DataError
from .places import Places

if TYPE_CHECKING:
    from datasets import Dataset


def column_values(data: Dataset, column: str) -> list[Any]:
    """All values of a column at once: reading them row by row takes tens of times as long."""
    return list(data[column][:])


def is_missing(value: Any) -> bool:
    """None, a float NaN, or a text of nothing but white space."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


class RowCheck:
    """What is wrong with the rows of one split, and which of them have a cell without anything in it.

    Args:
        data: the rows.
        places: says where they stand.
    """

    def __init__(self, data: Dataset, places: Places):
        self.data, self.places = data, places
        self.problems: list[str] = []
        self.empty: dict[str, list[int]] = {}

    def has(self, parameter: str, column: str) -> bool:
        """Whether there is such a column; else that there is none is a problem."""
        if column in self.data.column_names:
            return True
        said = f"{parameter}={column!r}: there is no such column; the columns are {', '.join(self.data.column_names)}"
        if said not in self.problems:
            self.problems.append(said)
        return False

    def present(self, parameter: str, column: str) -> list[tuple[int, Any]]:
        """Row numbers and values of a column that has something in them; the others are remembered as empty."""
        found = []
        for row, value in enumerate(column_values(self.data, column)):
            if is_missing(value):
                self.empty.setdefault(f"{parameter}={column!r}", []).append(row)
            else:
                found.append((row, value))
        return found

    def refuse(self, parameter: str, column: str, rows: Sequence[int], said: str) -> None:
        """Adds a problem of some rows."""
        self.problems.append(f"{parameter}={column!r} {said} {self.places(rows)}")

    def text(self, parameter: str, column: str) -> None:
        """The column holds strings."""
        if not self.has(parameter, column):
            return
        wrong = [(row, value) for row, value in self.present(parameter, column) if not isinstance(value, str)]
        if wrong:
            kind = type(wrong[0][1]).__name__
            said = f"must hold text, choose another column; it holds {kind} in"
            self.refuse(parameter, column, [row for row, _ in wrong], said)

    def kept(self) -> list[int]:
        """The rows without empty cells."""
        without = {row for rows in self.empty.values() for row in rows}
        return [row for row in range(len(self.data)) if row not in without]

    def report(self, drop_empty: bool) -> list[str]:
        """All problems; rows with empty cells are one unless they are to be left out and others remain."""
        found = list(self.problems)
        if self.empty and not self.kept():
            found.append(f"no row has something in each of {', '.join(self.empty)}")
        elif self.empty and not drop_empty:
            found += [
                f"{name} is empty in {len(rows)} of {len(self.data)} rows: {self.places(rows)}"
                for name, rows in self.empty.items()
            ]
        return found


def refuse(checks: dict[str, RowCheck], drop_empty: bool) -> None:
    """Raises one ``DataError`` that holds every problem of all splits, named as in ``checks``, where there is any."""
    found = {name: check.report(drop_empty) for name, check in checks.items()}
    said = [f"{name}: {problem}" for name, problems in found.items() for problem in problems]
    if not said:
        return
    if any(check.empty for check in checks.values()) and not drop_empty:
        said.append("Fill empty cells, or leave their rows out with drop_empty=true")
    raise DataError("\n".join(said))
