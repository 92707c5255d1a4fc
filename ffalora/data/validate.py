"""Checks of columns before anything is trained on them: each failure names the column, the rows and the remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

_SHOWN_ROWS = 8
_MOST_CLASSES = 1000


def require_columns(data: Dataset, columns: Sequence[str], parameter: str, source: str) -> None:
    """Every one of ``columns`` is there, or ``DataError`` lists the columns that are."""
    missing = [column for column in columns if column not in data.column_names]
    if missing:
        raise DataError(
            f"{parameter}={missing[0]!r}: {source} has no such column; its columns are {', '.join(data.column_names)}"
        )


def _rows(rows: Sequence[int]) -> str:
    shown = ", ".join(str(row) for row in rows[:_SHOWN_ROWS])
    return f"row{'s' if len(rows) > 1 else ''} {shown}{', …' if len(rows) > _SHOWN_ROWS else ''} (counted from 0)"


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def check_texts(data: Dataset, columns: Sequence[str], source: str, *, drop_empty: bool) -> Dataset:
    """All values of ``columns`` are strings with something in them.

    Rows that are missing, NaN or blank raise ``DataError`` with their numbers, or are left out with ``drop_empty``.
    """
    empty: set[int] = set()
    for column in columns:
        values = data[column]
        wrong = [row for row, value in enumerate(values) if not _is_missing(value) and not isinstance(value, str)]
        if wrong:
            kind = type(values[wrong[0]]).__name__
            raise DataError(
                f"column {column!r} of {source} must hold text, {_rows(wrong)} {'hold' if len(wrong) > 1 else 'holds'} "
                f"{kind}; choose another column"
            )
        blank = [row for row, value in enumerate(values) if _is_missing(value) or not value.strip()]
        if blank and not drop_empty:
            raise DataError(
                f"column {column!r} of {source} is empty or missing in {len(blank)} of {len(data)} rows: {_rows(blank)}. "
                "Remove or fill them, or leave them out with drop_empty=true"
            )
        empty.update(blank)
    if not empty:
        return data
    return data.select([row for row in range(len(data)) if row not in empty])


def class_values(data: Dataset, column: str, source: str) -> list[Any]:
    """The column as class values (int, str or bool), integral floats turned into ints.

    Raises ``DataError`` for missing values and for numbers that are no classes.
    """
    values = list(data[column])
    missing = [row for row, value in enumerate(values) if _is_missing(value)]
    if missing:
        raise DataError(
            f"label column {column!r} of {source} is missing in {len(missing)} of {len(values)} rows: {_rows(missing)}. "
            "Label or remove them"
        )
    if all(isinstance(value, float) for value in values) and all(value.is_integer() for value in values):
        values = [int(value) for value in values]
    bad = [row for row, value in enumerate(values) if not isinstance(value, (int, str))]
    if bad:
        raise DataError(
            f"label column {column!r} of {source} must hold classes (integers or strings) for classification, but "
            f"{_rows(bad)} hold e.g. {values[bad[0]]!r}. Choose another label_column, or task: regression for numbers"
        )
    return values


def check_classes(values: Sequence[Any], column: str, source: str) -> None:
    """At least two classes, and fewer than a column of identifiers or free text would have."""
    distinct = len(set(values))
    if distinct < 2:
        raise DataError(
            f"label column {column!r} of {source} holds one class only ({values[0]!r}); classification needs two or more"
        )
    if distinct > _MOST_CLASSES or (len(values) >= 20 and distinct > len(values) / 2):
        raise DataError(
            f"label column {column!r} of {source} has {distinct} different values in {len(values)} rows, which are no "
            "classes; choose another label_column, or task: regression for numbers"
        )


def numbers(data: Dataset, column: str, source: str) -> np.ndarray:
    """The column as float64 numbers; ``DataError`` names rows that are missing, not finite or not numbers."""
    values = list(data[column])
    bad = [
        row
        for row, value in enumerate(values)
        if isinstance(value, (bool, str)) or _is_missing(value) or not np.isfinite(value)
    ]
    if bad:
        raise DataError(
            f"label column {column!r} of {source} must hold finite numbers for regression, {_rows(bad)} "
            f"hold e.g. {values[bad[0]]!r}"
        )
    return np.asarray(values, dtype=np.float64)
