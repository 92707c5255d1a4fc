"""Reading local data: one file, a folder of files, or a folder saved by ``datasets``; always into memory, never copied.

Private data must not end up in a shared cache of converted files, so files are read directly rather than through the
builders of ``datasets.load_dataset``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .delimited import TextFormat, check_names, find_format, read_delimited, record_lines
from .errors import DataError
from .spelling import composed

if TYPE_CHECKING:
    from datasets import Dataset

FILE_COLUMN = "file"  # which file of a folder a row came from
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_ROLE_OF_STEM = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


@dataclass(frozen=True)
class Part:
    """The rows of one file, ``rows`` of them; ``form`` is how a CSV or TSV file is written."""

    file: Path
    rows: int
    form: TextFormat | None = None

    def lines(self) -> list[int] | None:
        """In which line each row begins, counted from 1; None where rows have no lines."""
        if self.form is not None:
            return record_lines(self.file, self.form)
        text = "" if self.file.suffix.lower() == ".parquet" else self.file.read_text(encoding="utf-8-sig")
        if not text or _is_one_list(self.file, text):
            return None
        return [number for number, _ in lines_of(text)]


@dataclass(frozen=True)
class Splits:
    """Splits of a source by their own names, and the files that the rows of each come from, in their order; ``client``
    is the column that tells these files apart, where each is one client's.
    """

    data: dict[str, Dataset]
    parts: Mapping[str, Sequence[Part]] = field(default_factory=dict)
    client: str | None = None


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line that holds something. What else ends a line to Python (U+2028, U+0085) may
    stand inside a JSON string.
    """
    return ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def read_file(file: Path, encoding: str | None = None, delimiter: str | None = None) -> tuple[Dataset, Part]:
    """One CSV, TSV, JSON (list of objects), JSON-lines or Parquet file as a ``Dataset`` in memory.

    ``encoding`` and ``delimiter`` of text tables are found where they are not given; names of columns are composed
    (Unicode's NFC), as a keyboard writes them in a configuration. Raises ``DataError`` for an
    unknown suffix, a file that cannot be parsed, and one without rows.
    """
    from datasets import Dataset

    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        hint = "; save the sheet as CSV" if suffix in (".xlsx", ".xls", ".ods") else ""
        raise DataError(f"data file {file}: suffix {suffix!r} is not one of {', '.join(SUFFIXES)}{hint}")
    try:
        form = find_format(file, encoding, delimiter) if suffix in (".csv", ".tsv") else None
        table = read_delimited(file, form) if form else _read_table(file, suffix)
        check_names(table.columns)
        table = table.rename(columns=composed)
        table = table.astype({name: object for name in table if table[name].isna().all()})
        data = Dataset.from_pandas(table, preserve_index=False)
    except (OSError, ValueError, TypeError, ImportError) as error:  # parsers of pandas and arrow raise ValueErrors
        raise DataError(f"data file {file} cannot be read as {suffix[1:]}: {error}") from error
    if len(data) == 0:
        raise DataError(f"data file {file} has no rows")
    return data, Part(file, len(data), form)


def _is_one_list(file: Path, text: str) -> bool:
    return file.suffix.lower() != ".jsonl" and text.lstrip().startswith("[")


def _read_table(file: Path, suffix: str) -> Any:
    import pandas

    if suffix == ".parquet":
        table = pandas.read_parquet(file, dtype_backend="numpy_nullable")
        for name in table:
            table[name] = _without_decimals(table[name])
        return table
    text = file.read_text(encoding="utf-8-sig")
    if _is_one_list(file, text):
        rows = json.loads(text)
    else:
        rows = []
        for number, line in lines_of(text):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("every row must be an object with named columns")
    table = pandas.DataFrame(rows, dtype=object)  # whole numbers stay whole beside empty cells
    for name in table:
        table[name] = _one_kind(table[name])
    return table


def _without_decimals(cells: Any) -> Any:
    """A column; where it holds decimals, as databases export numbers, whole numbers (long ones as texts) or floats."""
    import pandas

    held = cells.dropna()
    if held.empty or not isinstance(held.iloc[0], Decimal):
        return cells
    if any(value != value.to_integral_value() for value in held):
        return cells.astype("float64").astype("Float64")
    whole = [None if value is None else int(value) for value in cells]
    if held.abs().max() < 2**63:
        return pandas.Series(whole, cells.index, dtype="Int64")
    return pandas.Series([None if value is None else str(value) for value in whole], cells.index, dtype="string")


def _one_kind(cells: Any) -> Any:
    """A column of JSON values; of texts where they are texts or of several kinds: what is no text as JSON writes it."""
    import pyarrow

    try:
        held = pyarrow.array(cells, from_pandas=True)
    except (pyarrow.ArrowException, OverflowError):
        written = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in cells]
        return cells.where(cells.isna(), written).astype("string")
    return cells.astype("string") if pyarrow.types.is_string(held.type) else cells


def read_folder(folder: Path, encoding: str | None = None, delimiter: str | None = None) -> Splits:
    """Splits of a folder: saved by ``datasets.save_to_disk``, or holding data files.

    Files called train, validation (valid, val, dev) or test, also with more behind what is no letter (``train1``,
    ``test data``), are those splits. If no file is called so, every file is one client's: all rows form one split
    "train", and column ``file`` holds the file's stem. Raises ``DataError`` when nothing can be read.
    """
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return Splits(_read_saved(folder))
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(
            f"data folder {folder} holds neither a data set saved by `datasets` nor a file ending in "
            f"{', '.join(SUFFIXES)}"
        )
    roles = {file: _role(file) for file in files}
    strangers = [file.name for file, role in roles.items() if role is None]
    if strangers and any(roles.values()):
        raise DataError(
            f"data folder {folder}: {strangers} are not named after a split although other files are; "
            "rename them to train*, validation* or test*, or move them away"
        )
    found: dict[str, list[Dataset]] = {}
    parts: dict[str, list[Part]] = {}
    for file, role in roles.items():
        data, part = read_file(file, encoding, delimiter)
        found.setdefault(role or "train", []).append(data if role else _with_file_column(data, file))
        parts.setdefault(role or "train", []).append(part)
    client = FILE_COLUMN if strangers else None
    return Splits({role: _concatenate(folder, rows) for role, rows in found.items()}, parts, client)


def _role(file: Path) -> str | None:
    begins = re.match(r"[a-z]*", file.stem.lower())
    return _ROLE_OF_STEM.get(begins[0] if begins else "")


def _with_file_column(data: Dataset, file: Path) -> Dataset:
    if FILE_COLUMN in data.column_names:
        raise DataError(
            f"data file {file} has a column {FILE_COLUMN!r}, which says of the rows of a folder of clients whose file "
            "they are from; rename it"
        )
    return data.add_column(FILE_COLUMN, [file.stem] * len(data))


def _concatenate(folder: Path, parts: list[Dataset]) -> Dataset:
    """Rows of several files; a column without a cell in one of them, or of whole numbers, is what it is in others."""
    import pyarrow
    from datasets import Dataset

    held, text = [part.data.table.replace_schema_metadata() for part in parts], pyarrow.large_string()
    texts = {field.name for table in held for field in table.schema if str(field.type) in ("string", "large_string")}
    kinds = [
        {f.name: text if f.name in texts and pyarrow.types.is_integer(f.type) else f.type for f in table.schema}
        for table in held
    ]
    try:
        tables = [table.cast(pyarrow.schema(kind)) for table, kind in zip(held, kinds, strict=True)]
        return Dataset(pyarrow.concat_tables(tables, promote_options="permissive"))
    except (pyarrow.ArrowException, ValueError, TypeError) as error:
        raise DataError(f"data folder {folder}: the files' columns do not agree: {error}") from error


def _read_saved(folder: Path) -> dict[str, Dataset]:
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"data folder {folder} cannot be read as a data set saved by `datasets`: {error}") from error
    return dict(saved) if isinstance(saved, DatasetDict) else {"train": saved}
