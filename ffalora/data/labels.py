"""Labels: from whatever the source holds to class numbers 0 … classes-1, or to finite numbers for regression."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DataError
from .spelling import match, one_spelling
from .splits import ALL
from .validate import RowCheck, column_values

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_MOST_CLASSES = 1000


def check_numbers(check: RowCheck, column: str) -> None:
    """The column holds finite numbers, for regression."""
    if not check.has("label_column", column):
        return
    bad = [(row, value) for row, value in check.present("label_column", column) if not is_number(value)]
    if bad:
        marks = " (no marks between thousands, and a point before decimals)" if "," in str(bad[0][1]) else ""
        said = f"must hold finite numbers for regression{marks}; it holds e.g. {bad[0][1]!r} in"
        check.refuse("label_column", column, [row for row, _ in bad], said)


def is_number(value: Any) -> bool:
    """Whether it is a finite number, or a text that is one."""
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def check_classes(check: RowCheck, column: str, is_learned: bool) -> None:
    """The column holds classes: integers or strings; where the model learns from them, at least two, and fewer than a
    column of identifiers or free text would have.
    """
    if not check.has("label_column", column):
        return
    present = [(row, _whole(value)) for row, value in check.present("label_column", column)]
    bad = [(row, value) for row, value in present if not isinstance(value, int | str)]
    if bad:
        said = (
            "must hold classes (integers or strings) for classification, choose another column or task: regression; "
            f"it holds e.g. {bad[0][1]!r} in"
        )
        check.refuse("label_column", column, [row for row, _ in bad], said)
    elif present and is_learned:
        distinct = len({value for _, value in present})
        if distinct < 2:
            check.problems.append(
                f"label_column={column!r} holds one class only ({present[0][1]!r}); classification needs two or more"
            )
        elif are_no_classes(distinct, len(present)):
            check.problems.append(
                f"label_column={column!r} has {distinct} different values in {len(present)} rows, which are no "
                "classes; choose another label_column, or task: regression for numbers"
            )


def are_no_classes(distinct: int, rows: int) -> bool:
    """Whether so many different values in so many rows are identifiers, numbers or free text."""
    return distinct > _MOST_CLASSES or (rows >= 20 and distinct > rows / 2)


def encode_numbers(parts: dict[str, Dataset], column: str) -> dict[str, Dataset]:
    """Each part, checked before, with its label column as float64."""
    return {
        role: _replace(data, column, np.array([float(value) for value in column_values(data, column)]))
        for role, data in parts.items()
    }


def encode_classes(
    parts: dict[str, Dataset], column: str, source: str, names: Sequence[str] | None = None
) -> tuple[dict[str, Dataset], list[str]]:
    """Each part, checked before, with its label column as class numbers (int64), and the names of the classes.

    ``parts`` maps roles to data; its first entry is what the model learns from, and no other part may hold a class that
    it does not. ``names``, or else those of a ``ClassLabel`` column, are kept where the labels are already their
    numbers; otherwise classes are numbered in sorted order. Spellings of a name are one class. Raises ``DataError``.
    """
    values = {role: _class_values(data, column) for role, data in parts.items()}
    if any(isinstance(value, str) for part in values.values() for value in part[:1]):  # codes: 07 in one, 12 in another
        values = {role: [str(value) for value in part] for role, part in values.items()}
    spelling = one_spelling(value for part in values.values() for value in part)
    if len(spelling) > len(set(spelling.values())):
        logger.warning(
            "label column %r: %d spellings are %d classes; blanks, Unicode forms and case do not tell them apart",
            *(column, len(spelling), len(set(spelling.values()))),
        )
    values = {role: [spelling.get(value, value) for value in part] for role, part in values.items()}
    first, *others = values
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
        order = sorted(learned)
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
    """Each part, checked before, with its label column as positions (int64) in ``names``, the classes of a model that
    exists already.

    Classes are matched by name: as the source writes them (a ``ClassLabel`` column and ``own_names`` turn numbers into
    names), in any spelling, or by what ``mapping`` makes of that. A class without rows is no fault; one that is not in
    ``names`` is a ``DataError``.
    """
    encoded = {}
    for role, data in parts.items():
        values = _class_values(data, column)
        written = own_names or getattr(data.features[column], "names", None) or []
        is_numbers = bool(written) and set(values) <= set(range(len(written)))
        called = [written[value] if is_numbers else str(value) for value in values]
        known = {value: match(mapping.get(value, value), names) for value in set(called)}
        called = [known[value] for value in called]
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


def with_one_spelling(parts: dict[str, Dataset], column: str) -> dict[str, Dataset]:
    """Each part with every name of a column (a client's, a user's) in one spelling."""
    values = {role: column_values(data, column) for role, data in parts.items()}
    spelling = one_spelling(value for part in values.values() for value in part)
    if all(value == name for value, name in spelling.items()):
        return parts
    return {
        role: _replace(
            data, column, [spelling.get(value, value) if isinstance(value, str) else value for value in values[role]]
        )
        for role, data in parts.items()
    }


def _replace(data: Dataset, column: str, values: np.ndarray | list[Any]) -> Dataset:
    return data.remove_columns(column).add_column(column, values)


def _class_values(data: Dataset, column: str) -> list[Any]:
    """The column as class values (int, str or bool)."""
    return [_whole(value) for value in column_values(data, column)]


def _whole(value: Any) -> Any:
    """An integral float as an int, which it was before a missing cell made its column one of floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
