"""Labels: from whatever the source holds to class numbers 0 … classes-1, or to finite numbers for regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DataError
from .splits import ALL
from .validate import column_values, is_missing, name_rows

if TYPE_CHECKING:
    from datasets import Dataset

_MOST_CLASSES = 1000


def encode_numbers(parts: dict[str, Dataset], column: str, source: str) -> dict[str, Dataset]:
    """Each part with its label column as float64; ``DataError`` names rows that hold no finite number."""
    return {
        role: _replace(data, column, _numbers(data, column, describe(source, role))) for role, data in parts.items()
    }


def encode_classes(
    parts: dict[str, Dataset], column: str, source: str, names: Sequence[str] | None = None
) -> tuple[dict[str, Dataset], list[str]]:
    """Each part with its label column as class numbers (int64), and the names of the classes.

    ``parts`` maps roles to data; its first entry is what the model learns from, and no other part may hold a class that
    it does not. ``names``, or else those of a ``ClassLabel`` column, are kept where the labels are already their
    numbers; otherwise classes are numbered in sorted order. Raises ``DataError``.
    """
    values = {role: _class_values(data, column, describe(source, role)) for role, data in parts.items()}
    first, *others = values
    _check_classes(values[first], column, describe(source, first))
    learned = set(values[first])
    for role in others:
        strange = sorted({str(value) for value in values[role] if value not in learned})
        if strange:
            raise DataError(
                f"label column {column!r} of {describe(source, role)} holds classes that {describe(source, first)} "
                f"does not: {', '.join(strange[:8])}"
            )
    names = names or getattr(parts[first].features[column], "names", None)
    if names and learned <= set(range(len(names))):
        number = {value: value for value in learned}
    else:
        mixed = len({isinstance(value, str) for value in learned}) > 1
        order = sorted(learned, key=str if mixed else None)
        number = {value: index for index, value in enumerate(order)}
        names = [str(value) for value in order]
    encoded = {
        role: _replace(data, column, np.array([number[value] for value in values[role]], dtype=np.int64))
        for role, data in parts.items()
    }
    return encoded, list(names)


def number_classes(
    parts: dict[str, Dataset],
    column: str,
    source: str,
    names: Sequence[str],
    mapping: Mapping[str, str],
    own_names: Sequence[str] | None = None,
) -> tuple[dict[str, Dataset], list[str]]:
    """Each part with its label column as positions (int64) in ``names``, the classes of a model that exists already.

    Classes are matched by name: as the source writes them (a ``ClassLabel`` column and ``own_names`` turn numbers into
    names), or what ``mapping`` makes of that. A class without rows is no fault; one that is not in ``names`` is a
    ``DataError``.
    """
    encoded = {}
    for role, data in parts.items():
        values = _class_values(data, column, describe(source, role))
        written = own_names or getattr(data.features[column], "names", None) or []
        is_numbers = bool(written) and set(values) <= set(range(len(written)))
        called = [written[value] if is_numbers else str(value) for value in values]
        called = [mapping.get(value, value) for value in called]
        strange = sorted(set(called) - set(names))
        if strange:
            raise DataError(
                f"label column {column!r} of {describe(source, role)} holds the classes {', '.join(strange[:8])}, but "
                f"the classes of the model are {', '.join(names)}; use data with classes of these names"
            )
        encoded[role] = _replace(data, column, np.array([list(names).index(value) for value in called], dtype=np.int64))
    return encoded, list(names)


def describe(source: str, role: str) -> str:
    """How messages call a part of the source: "glue/sst2 (test)"; the bare name for rows of no split."""
    return source if role == ALL else f"{source} ({role})"


def _replace(data: Dataset, column: str, values: np.ndarray) -> Dataset:
    return data.remove_columns(column).add_column(column, values)


def _class_values(data: Dataset, column: str, source: str) -> list[Any]:
    """The column as class values (int, str or bool), integral floats turned into ints.

    Raises ``DataError`` for missing values and for numbers that are no classes.
    """
    values = column_values(data, column)
    missing = [row for row, value in enumerate(values) if is_missing(value)]
    if missing:
        raise DataError(
            f"label column {column!r} of {source} is missing in {len(missing)} of {len(values)} rows: "
            f"{name_rows(missing)}. Label or remove them"
        )
    values = [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
    bad = [row for row, value in enumerate(values) if not isinstance(value, (int, str))]
    if bad:
        raise DataError(
            f"label column {column!r} of {source} must hold classes (integers or strings) for classification, but "
            f"{name_rows(bad)} hold e.g. {values[bad[0]]!r}. Choose another label_column, or "
            "task: regression for numbers"
        )
    return values


def _check_classes(values: Sequence[Any], column: str, source: str) -> None:
    """At least two classes, and fewer than a column of identifiers or free text would have."""
    distinct = len(set(values))
    if distinct < 2:
        raise DataError(
            f"label column {column!r} of {source} holds one class only ({values[0]!r}); classification needs two "
            "or more"
        )
    if distinct > _MOST_CLASSES or (len(values) >= 20 and distinct > len(values) / 2):
        raise DataError(
            f"label column {column!r} of {source} has {distinct} different values in {len(values)} rows, which are no "
            "classes; choose another label_column, or task: regression for numbers"
        )


def _numbers(data: Dataset, column: str, source: str) -> np.ndarray:
    """The column as float64 numbers; ``DataError`` names rows that are missing, not finite or not numbers."""
    values = column_values(data, column)
    bad = [
        row
        for row, value in enumerate(values)
        if isinstance(value, (bool, str)) or is_missing(value) or not np.isfinite(value)
    ]
    if bad:
        raise DataError(
            f"label column {column!r} of {source} must hold finite numbers for regression, {name_rows(bad)} "
            f"hold e.g. {values[bad[0]]!r}"
        )
    return np.asarray(values, dtype=np.float64)
