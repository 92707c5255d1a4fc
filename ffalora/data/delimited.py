"""Tables in text: which encoding and which delimiter a file has, and in which line each of its rows begins."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Literal

from .spelling import composed

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
#: Byte-order marks, longest first, and the encodings that they announce.
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_WESTERN = "cp1252"
_NAMES = {
    "utf-8": "UTF-8",
    "utf-8-sig": "UTF-8 with a byte-order mark",
    "utf-16": "UTF-16",
    _WESTERN: "Windows-1252",
}
_RECORDS = 200
_DECIMAL, _THOUSANDS = re.compile(r"[+-]?\d+(,\d+)?"), re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
#: How cells are written that are codes, whatever numbers they would be: 007, 1E10.
_CODE, _MAYBE_CODE = re.compile(r"\s*([+-]?0\d|\d+[eE]\d+\s*$)"), re.compile(r"(?<![\w.])(0\d|\d+[eE]\d)")
_LONGEST_FIELD = 2**31 - 1  # the csv module refuses fields of 128 kB unless told otherwise


@dataclass(frozen=True)
class TextFormat:
    """How a table is written as text: Python's name of the encoding, what stands between two cells, the mark before
    the decimals of numbers, and whether double quotes around a cell are not part of it.
    """

    encoding: str
    delimiter: str
    decimal: str = "."
    has_quotes: bool = True

    def __str__(self) -> str:
        delimiter = DELIMITERS.get(self.delimiter, repr(self.delimiter))
        decimal = ", decimal commas" if self.decimal == "," else ""
        quotes = "" if self.has_quotes else ", quotes as they are"
        return f"{_NAMES.get(self.encoding, self.encoding)}, {delimiter} between cells{decimal}{quotes}"

    @property
    def quoting(self) -> Literal[0, 3]:
        """What the csv module and pandas call it."""
        return csv.QUOTE_MINIMAL if self.has_quotes else csv.QUOTE_NONE


def find_format(file: Path, encoding: str | None = None, delimiter: str | None = None) -> TextFormat:
    """The format of a CSV or TSV file; what is given is taken as it is.

    The encoding is what a byte-order mark announces, else UTF-8 where the whole file is valid UTF-8, else Windows-1252.
    The delimiter is the one by which most of the first 200 records have as many cells as the header, and the header
    the most; where the header is one cell, the one by which all records are, a comma first (in a .tsv file a tab).
    Decimals have a comma where a column of these records is numbers with one, some of which are no thousands (12,500).
    Quotes belong to the texts where taken otherwise they would not close at the end of a cell, and each line has as
    many cells as the header.

    Raises:
        ValueError: bytes that no encoding tried here allows, an encoding that Python does not know, or quotes by which
            several lines would be one row.
    """
    content = file.read_bytes()
    encoding = encoding or _encoding_of(content)
    text = _decoded(content[: 1 << 18], encoding, is_cut=len(content) > 1 << 18)
    if delimiter is None:
        delimiter = _delimiter_of(text, "\t" if file.suffix.lower() == ".tsv" else ",")
    decimal = "," if delimiter != "," and _has_decimal_commas(text, delimiter) else "."
    return TextFormat(
        encoding, delimiter, decimal, b'"' not in content or _has_quotes(content.decode(encoding), delimiter)
    )


def read_delimited(file: Path, form: TextFormat, as_written: bool = False) -> Any:
    """The table as a pandas.DataFrame. Only an empty cell counts as missing: a text "NA" or "null" is a text. Whole
    numbers stay whole beside empty cells; a column of numbers in which one is written with zeros before it (``007``) or
    as ``1E10`` (and not 1e+10) holds codes, which are texts.

    Args:
        as_written: every cell as the text that it is, an empty one too.

    Raises:
        ValueError: no header, names as :func:`check_names` refuses them, undecodable bytes, or rows with more cells
            than the header, by their lines.
    """
    import pandas

    check_names(next((cells for _, cells in _records(_text(file, form), form) if not _is_blank(cells)), []))
    table = _parsed(file, form, na_filter=False, dtype=str) if as_written else _parsed(file, form)
    if not isinstance(table.index, pandas.RangeIndex):  # pandas takes surplus cells for names of rows
        raise ValueError(_uneven(file, form) or "rows have more cells than the header")
    numbers = [i for i, kind in enumerate(table.dtypes) if pandas.api.types.is_any_real_numeric_dtype(kind)]
    if numbers and _MAYBE_CODE.search(_text(file, form)):
        for name, cells in _parsed(file, form, usecols=numbers, dtype="string").items():
            if cells.str.match(_CODE).any():
                table[name] = cells
    return table


def read_text(file: Path) -> str:
    """A file of text in the encoding that :func:`find_format` finds, with lines that end as everywhere (``\\n``).

    Raises:
        ValueError: bytes that no encoding tried there allows.
    """
    content = file.read_bytes()
    return content.decode(_encoding_of(content)).replace("\r\n", "\n").replace("\r", "\n")


def check_names(names: Iterable[str]) -> None:
    """Refuses columns of one name, or of two that differ in blanks around them or in Unicode forms alone.

    Raises:
        ValueError: names them and their places.
    """
    places: dict[str, list[tuple[int, str]]] = {}
    for place, name in enumerate(names, start=1):
        places.setdefault(composed(str(name)).strip(), []).append((place, name))
    for name, found in places.items():
        if name and len(found) > 1:
            shown = " and ".join(f"{place} ({written!r})" for place, written in found)
            raise ValueError(f"columns {shown} have one name, so that none of them is meant by it; rename all but one")


def _parsed(file: Path, form: TextFormat, **how: Any) -> Any:
    import pandas

    try:
        return pandas.read_csv(
            file, sep=form.delimiter, encoding=form.encoding, decimal=form.decimal, keep_default_na=False,
            na_values=[""], low_memory=False, quoting=form.quoting, dtype_backend="numpy_nullable", **how,
        )  # fmt: skip
    except pandas.errors.EmptyDataError:
        raise ValueError("it is empty") from None
    except pandas.errors.ParserError as error:
        raise ValueError(_uneven(file, form) or str(error)) from error


def record_lines(file: Path, form: TextFormat) -> list[int]:
    """In which line of the file, counted from 1, each row after the header begins; blank lines are no rows."""
    return [line for line, cells in _records(_text(file, form), form) if not _is_blank(cells)][1:]


def _text(file: Path, form: TextFormat) -> str:
    return file.read_bytes().decode(form.encoding)


def _records(text: str, form: TextFormat, is_strict: bool = False) -> Any:
    """First line and cells of each record, also of blank ones; ``is_strict`` raises :class:`csv.Error` where a quoted
    cell goes on behind its quotes.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=form.delimiter, quoting=form.quoting, strict=is_strict)
    begun = 1
    for cells in reader:
        yield begun, cells
        begun = reader.line_num + 1


def _has_quotes(text: str, delimiter: str) -> bool:
    """Whether double quotes around cells are not part of them: not where that fails, and the lines are rows without.

    Raises:
        ValueError: it fails over several lines, which would be read as one row, and without quotes they are none.
    """
    quoted, plain, sound = TextFormat("", delimiter), TextFormat("", delimiter, has_quotes=False), 0
    try:
        for _ in _records(text, quoted, is_strict=True):
            sound += 1
    except csv.Error:
        if len({len(cells) for _, cells in _records(text, plain) if not _is_blank(cells)}) == 1:
            return False
        line, cells = next(islice(_records(text, quoted), sound, None))
        if any("\n" in cell for cell in cells):
            raise ValueError(
                f"a double quote that opens a cell in line {line} is not closed at the end of one, so that the lines "
                "behind it would be one row; put texts that hold quotes into double quotes, and double those within"
            ) from None
    return True


def _is_blank(cells: list[str]) -> bool:
    return not cells or (len(cells) == 1 and cells[0].isspace())


def _encoding_of(content: bytes) -> str:
    for mark, name in _MARKS:
        if content.startswith(mark):
            return name
    for encoding in ("utf-8", _WESTERN):
        try:
            content.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    raise ValueError("its bytes are neither UTF-8 nor Windows-1252; save it as UTF-8, or name its encoding")


def _decoded(content: bytes, encoding: str, is_cut: bool) -> str:
    """The text of the beginning of a file; a character that the cut went through is left out."""
    try:
        return content.decode(encoding, errors="ignore" if is_cut else "strict")
    except LookupError:
        raise ValueError(f"encoding {encoding!r} is not known; write utf-8, cp1252, …") from None


def _delimiter_of(text: str, usual: str) -> str:
    widths = {d: found for d in sorted(DELIMITERS, key=lambda d: d != usual) if (found := _widths(text, d))}
    several = {d: (Counter(found)[found[0]] / len(found), found[0]) for d, found in widths.items() if found[0] > 1}
    if several:
        return max(several, key=lambda d: several[d])
    return next((d for d, found in widths.items() if set(found) == {1}), usual)


def _has_decimal_commas(text: str, delimiter: str) -> bool:
    """Whether all that a column holds in the first records are numbers, some with what can only be decimals behind a
    comma.
    """
    try:
        records = [cells for _, cells in islice(_records(text, TextFormat("", delimiter)), 1, _RECORDS) if cells]
    except csv.Error:
        return False
    columns = [[cell.strip() for cell in column if cell.strip()] for column in zip_longest(*records, fillvalue="")]
    return any(
        any("," in cell and not _THOUSANDS.fullmatch(cell) for cell in column) and all(map(_DECIMAL.fullmatch, column))
        for column in columns
    )


def _widths(text: str, delimiter: str) -> list[int]:
    """Cells of each of the first records; none where the text is no table with this delimiter."""
    try:
        found = [len(cells) for _, cells in islice(_records(text, TextFormat("", delimiter)), _RECORDS) if cells]
    except csv.Error:
        return []
    return found[:-1] if len(found) > 2 else found  # the last one may have been cut


def _uneven(file: Path, form: TextFormat) -> str:
    """Which lines have more cells than the header, in words; empty where none has."""
    records = [(line, len(cells)) for line, cells in _records(_text(file, form), form) if cells]
    if not records:
        return ""
    width = records[0][1]
    wrong = [f"line {line} has {cells}" for line, cells in records[1:] if cells > width]
    if not wrong:
        return ""
    more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
    return (
        f"the header has {width} cells, {', '.join(wrong[:3])}{more}, read as {form}; put texts that hold the "
        "delimiter into double quotes, or name another delimiter"
    )
