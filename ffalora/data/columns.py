"""Which columns a task reads, where nobody says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .errors import DataError
from .files import FILE_COLUMN
from .validate import column_values, is_missing

if TYPE_CHECKING:
    from datasets import Dataset

#: Names of a prompt's column and its answer's, as tables for language models have them.
PROMPTS = (("prompt", "answer"), ("prompt", "completion"), ("question", "answer"), ("instruction", "output"))


def guess_inputs(data: Dataset, label_column: str | None, task: str, spec: str) -> tuple[str, ...]:
    """The columns that a task reads where none are named: by their usual names, else the only column of strings.

    Raises:
        DataError: lists the columns that there are.
    """
    wanted = {"image-classification": ("image",)}.get(task, ("text", "sentence"))
    if task == "causal-lm":
        for pair in PROMPTS:
            if set(pair) <= set(data.column_names):
                return pair
        for name in ("messages", "text"):
            if name in data.column_names:
                return (name,)
    else:
        for name in wanted:
            if name in data.column_names:
                return (name,)
        strings = [
            name
            for name, feature in data.features.items()
            if getattr(feature, "dtype", "") in ("string", "large_string") and name not in (label_column, FILE_COLUMN)
        ]
        if len(strings) == 1 and task != "image-classification":
            return (strings[0],)
    raise DataError(
        f"input_columns is not given and cannot be guessed for {spec} (task {task}); "
        f"name one or two of its columns: {', '.join(data.column_names)}"
    )


def numbers_as_text(data: Dataset, columns: Sequence[str]) -> Dataset:
    """The data with the numbers of these columns written out, as such answers are learned; empty cells stay empty."""
    from datasets import Value

    for column in columns:
        kind = getattr(data.features.get(column), "dtype", "")
        if kind.startswith(("int", "uint", "float")):
            written = [None if is_missing(value) else in_digits(value) for value in column_values(data, column)]
            data = data.remove_columns(column).add_column(column, written, feature=Value("string"))
    return data


def in_digits(value: Any) -> str:
    """A value as a person writes it: 41 also where its column holds fractions, or had empty cells."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)
