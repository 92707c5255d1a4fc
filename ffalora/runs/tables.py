"""Predictions for whole tables: the same rows, with what the adapter says of each beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.columns import guess_inputs
from ..data.conversations import problem_of_messages
from ..data.delimited import TextFormat, read_delimited
from ..data.errors import DataError
from ..data.files import SUFFIXES, Part, read_file
from ..data.generation import without_answer
from ..data.places import Places
from ..data.validate import column_values, is_missing
from ..files.atomic import write_atomically
from ..files.numbers import to_json
from .bundle import Bundle, answers_of, load_bundle, predict_with, trained_columns

if TYPE_CHECKING:
    from datasets import Dataset

PREDICTED, PROBABILITY = "predicted", "probability"
#: Columns that hold prompts, where a run's own is not there.
_PROMPTS = ("prompt", "question", "instruction", "messages", "text")


@dataclass(frozen=True)
class Predictions:
    """What was written.

    Attributes:
        file: the table; rows: with a prediction; skipped: without one, because they have no text.
        counts: rows of each class, the most frequent first; empty for numbers.
    """

    file: Path
    rows: int
    skipped: int
    counts: dict[str, int]


def predict_file(
    folder: str | Path, file: str | Path, output: str | Path, overrides: Mapping[str, Any] | None = None
) -> Predictions:
    """Writes the table ``file`` to ``output`` with what the adapter in ``folder`` predicts for each row.

    The table's own cells are as they were: from text to text letter by letter (``007``, numbers of many digits).
    Columns added: ``predicted``, ``probability`` (of that), and ``p(CLASS)`` for every class; for regression and for
    language models, which answer, ``predicted`` alone. Rows with an empty text keep their place and have none of them.

    Args:
        folder: a run's folder or its ``adapter``.
        file, output: CSV, TSV, JSON, JSON lines or Parquet, each by its suffix. A CSV file is written in UTF-8 with the
            delimiter and the decimal marks of ``file``.
        overrides: dotted keys to change, such as ``{"data.text": ["subject", "message"]}``.

    Raises:
        DataError: the file cannot be read, lacks a text column, has a column of such a name, or no row with a text.
        ConfigError, CheckpointError: as :func:`ffalora.predict`.
    """
    file, output, asked = Path(file), Path(output), overrides or {}
    if output.suffix.lower() not in SUFFIXES:
        raise DataError(f"output={str(output)!r}: its suffix must be one of {', '.join(SUFFIXES)}")
    if output.exists() and output.resolve() == file.resolve():
        raise DataError(f"output={str(output)!r} is the file that is read; give another name")
    bundle = load_bundle(folder, overrides)
    data, part = read_file(file, asked.get("data.encoding"), asked.get("data.delimiter"))
    config = bundle.config.data
    if config.task == "causal-lm":
        answered = _answered(bundle, data, part)
        table = _with_answers(_cells(data, part, output), list(answered), list(answered.values()), file)
        _write(table, output, part.form)
        return Predictions(output, len(answered), len(data) - len(answered), {})
    columns = trained_columns(bundle) or guess_inputs(data, config.label, config.task, str(file))
    missing = [name for name in columns if name not in data.column_names]
    if missing:
        raise DataError(
            f"{file} has no column {missing[0]!r}, which the run was trained on; its columns are "
            f"{', '.join(data.column_names)}"
        )
    values = [column_values(data, name) for name in columns]
    rows = [row for row in range(len(data)) if not any(is_missing(column[row]) for column in values)]
    if not rows:
        raise DataError(f"{file}: no row has a text in {' and '.join(columns)}")
    texts: Any = [tuple(str(column[row]) for column in values) for row in rows]
    answers = predict_with(bundle, texts)
    table = _with_answers(_cells(data, part, output), rows, answers, file)
    _write(table, output, part.form)
    counts = Counter(answer["label"] for answer in answers if "label" in answer)
    return Predictions(output, len(rows), len(data) - len(rows), dict(counts.most_common()))


def _answered(bundle: Bundle, data: Dataset, part: Part) -> dict[int, dict[str, str]]:
    """A language model's answer to every row with a prompt, or a conversation, whose own last answer is left off."""
    file, places = part.file, Places((part,))
    names = (*trained_columns(bundle)[:1], *_PROMPTS)
    column = next((name for name in names if name in data.column_names), None)
    if column is None:
        raise DataError(
            f"{file} has no column of prompts; name it {' or '.join(dict.fromkeys(names))}, or give it as data.text; "
            f"its columns are {', '.join(data.column_names)}"
        )
    cells: dict[int, Any] = {}
    for row, cell in enumerate(column_values(data, column)):
        asked = cell
        if isinstance(cell, list):
            if problem := problem_of_messages(cell):
                raise DataError(f"{file}: column {column!r}, {places([row])}: {problem}")
            asked = without_answer(cell)
        if not (is_missing(asked) or asked == []):
            cells[row] = asked if isinstance(asked, list) else str(asked)
    if not cells:
        raise DataError(f"{file}: no row has a prompt in {column}")
    return {row: {"answer": text} for row, text in zip(cells, answers_of(bundle, list(cells.values())), strict=True)}


def _cells(data: Dataset, part: Part, output: Path) -> Any:
    """The table's own cells, a pandas.DataFrame: as they are written, where they go from one text to another."""
    if part.form is not None and output.suffix.lower() in (".csv", ".tsv"):
        return read_delimited(part.file, part.form, as_written=True)
    return data.with_format("arrow")[:].to_pandas(integer_object_nulls=True)


def _with_answers(table: Any, rows: Sequence[int], answers: Sequence[Mapping[str, Any]], file: Path) -> Any:
    found: dict[str, list[Any]] = {}
    for answer in answers:
        if "label" in answer:
            shares = answer["probabilities"]
            named = {PREDICTED: answer["label"], PROBABILITY: shares[answer["label"]]}
            named |= {f"p({name})": share for name, share in shares.items()}
        else:
            named = {PREDICTED: answer["answer"] if "answer" in answer else answer["value"]}
        for name, value in named.items():
            found.setdefault(name, []).append(value)
    import pandas

    taken = [name for name in found if name in table.columns]
    if taken:
        raise DataError(f"{file} has a column {taken[0]!r} already; rename it")
    return table.join(pandas.DataFrame(found, index=rows))


def _write(table: Any, output: Path, form: TextFormat | None) -> None:
    suffix = output.suffix.lower()
    output.parent.mkdir(parents=True, exist_ok=True)
    if suffix in (".csv", ".tsv"):
        is_plain = form is None or form.encoding == "utf-8"
        delimiter = "\t" if suffix == ".tsv" else (form.delimiter if form else ",")
        decimal = form.decimal if form and delimiter != "," else "."
        content = table.to_csv(index=False, sep=delimiter, decimal=decimal, lineterminator="\n")
        content = content.encode("utf-8" if is_plain else "utf-8-sig")
    elif suffix == ".parquet":
        content = table.to_parquet(index=False)
    else:
        import pyarrow

        records = pyarrow.Table.from_pandas(table, preserve_index=False).to_pylist()  # pandas' own JSON rounds numbers
        rows = [to_json(record, default=str) for record in records]
        content = ("\n".join(rows) + "\n" if suffix == ".jsonl" else "[" + ",\n".join(rows) + "]\n").encode()
    write_atomically(output, content)
