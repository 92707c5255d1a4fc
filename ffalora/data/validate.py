"""Checks of columns before anything is trained on them: each failure names the column, the rows and the remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

_SHOWN_ROWS = 8


def column_values(data: Dataset, column: str) -> list[Any]:
    """All values of a column at once: reading them row by row takes tens of times as long."""
    return list(data[column][:])


def require_columns(data: Dataset, columns: Sequence[str], parameter: str, source: str) -> None:
    """Every one of ``columns`` is there, or ``DataError`` lists the columns that are."""
    missing = [column for column in columns if column not in data.column_names]
    if missing:
        raise DataError(
            f"{parameter}={missing[0]!r}: {source} has no such column; its columns are {', '.join(data.column_names)}"
        )


def name_rows(rows: Sequence[int]) -> str:
    """The first few row numbers in words."""
    shown = ", ".join(str(row) for row in rows[:_SHOWN_ROWS])
    return f"row{'s' if len(rows) > 1 else ''} {shown}{', …' if len(rows) > _SHOWN_ROWS else ''} (counted from 0)"


def is_missing(value: Any) -> bool:
    """None or a float NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def check_texts(data: Dataset, columns: Sequence[str], source: str, *, drop_empty: bool) -> Dataset:
    """All values of ``columns`` are strings with something in them.

    Rows that are missing, NaN or blank raise ``DataError`` with their numbers, or are left out with ``drop_empty``.
    """
    empty: set[int] = set()
    for column in columns:
        values = column_values(data, column)
        wrong = [row for row, value in enumerate(values) if not is_missing(value) and not isinstance(value, str)]
        if wrong:
            kind = type(values[wrong[0]]).__name__
            raise DataError(
                f"column {column!r} of {source} must hold text, but holds {kind} in {name_rows(wrong)}; "
                "choose another column"
            )
        blank = [row for row, value in enumerate(values) if is_missing(value) or not value.strip()]
        if blank and not drop_empty:
            raise DataError(
                f"column {column!r} of {source} is empty or missing in {len(blank)} of {len(data)} rows: "
                f"{name_rows(blank)}. Remove or fill them, or leave them out with drop_empty=true"
            )
        empty.update(blank)
    if not empty:
        return data
    return data.select([row for row in range(len(data)) if row not in empty])
