"""What a person's own table holds, and which of its columns are likely texts, labels and clients."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .columns import PROMPTS, in_digits
from .errors import DataError
from .files import FILE_COLUMN, Part, Splits, read_file, read_folder
from .labels import are_no_classes, is_number, with_one_spelling
from .spelling import composed, name_of, one_spelling
from .splits import DEFAULT_FRACTIONS, FEWEST_ROWS
from .validate import column_values, is_missing

if TYPE_CHECKING:
    from datasets import Dataset

_LABEL_WORDS = (
    "label labels class target category sentiment verdict outcome polarity topic intent rating score stars grade "
    "result y klasse kategorie bewertung urteil ergebnis thema ressort classe catégorie étiquette clase categoría "
    "categoria etiqueta"
).split()
_CLIENT_WORDS = (
    "client hospital clinic ward site centre center institution branch store shop school bank department office "
    "device country region state tenant organisation organization source file klinik krankenhaus standort filiale "
    "abteilung praxis redaktion hôpital clinique agence établissement magasin centro clínica sucursal agencia oficina"
).split()
_USER_WORDS = (
    "user customer patient author speaker owner person member student employee participant respondent reviewer writer"
).split()
_MOST_CLASSES, _MOST_SHOWN, _TEXT_WORDS = 50, 6, 2.5


@dataclass(frozen=True)
class Column:
    """What a column holds.

    Attributes:
        kind: 'text', 'number', 'conversation' or 'other'.
        distinct: different values, in so many spellings; empty: cells without one; words: of a text, on average.
        examples: some of the values; all, where there are few.
    """

    name: str
    kind: str
    distinct: int
    spellings: int
    empty: int
    words: float
    examples: tuple[str, ...]

    def __str__(self) -> str:
        if self.kind == "text" and self.words >= _TEXT_WORDS:
            return f"texts of {self.words:.0f} words on average"
        if self.kind == "conversation":
            return "conversations, each a list of messages"
        if self.kind == "other":
            return f"{self.distinct} different values that are neither texts nor numbers"
        is_number = self.kind == "number" and not {"False", "True"} & set(self.examples)
        what, shown = "number" if is_number else "value", ", ".join(self.examples)
        if self.distinct == 1:
            return f"one {what}: {shown}"
        spelt = f" in {self.spellings} spellings" if self.spellings > self.distinct else ""
        more = ", …" if self.distinct > len(self.examples) else ""
        return f"{self.distinct} different {what}s{spelt}: {shown}{more}"


@dataclass(frozen=True)
class Proposal:
    """Which columns a run would use, and what they hold.

    Attributes:
        source: as it was given; parts: its files; columns: all of them.
        task: 'classification', 'regression' or 'causal-lm'; text: one column or two; label: None for causal-lm; client:
            None for a single site; user: None where no column says whose the rows are, or somebody's are at several
            clients; apart: that column then.
        users: how many the largest client has; its rows where there is no such column.
        sizes: rows of each client that have all they need, the largest first; dropped: rows that have not.
        rivals: columns that could be the label just as well, where its name did not say that it is one.
        groups: columns that could be that of clients, where none is.
        unnamed: columns whose name is one of their values, as where a file has no line of names.
    """

    source: str
    parts: tuple[Part, ...]
    columns: tuple[Column, ...]
    task: str
    text: tuple[str, ...]
    label: str | None
    client: str | None
    sizes: tuple[int, ...]
    dropped: int
    user: str | None = None
    apart: str | None = None
    users: int = 0
    rivals: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()

    @property
    def rows_each(self) -> str:
        """How many rows a client has, in words: "40", or "20 to 40"."""
        return " to ".join(map(str, sorted({self.sizes[-1], self.sizes[0]})))

    def column(self, name: str) -> Column:
        """The column of that name."""
        return next(column for column in self.columns if column.name == name)


def propose(
    path: str | Path,
    text: Sequence[str] = (),
    label: str | None = None,
    client: str | None = None,
    user: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
) -> Proposal:
    """Looks at a file or folder and proposes what to train on; what is given is taken.

    Raises:
        DataError: it cannot be read, has no such column, or none that is likely a text or a label.
    """
    found = _read(Path(path).expanduser(), encoding, delimiter)
    name = "train" if "train" in found.data else next(iter(found.data))
    data, parts = found.data[name], tuple(found.parts.get(name, ()))
    given = (*text, *filter(None, (label, client, user)))
    for column in given:
        if column not in data.column_names:
            raise DataError(f"{path} has no column {column!r}; its columns are {', '.join(data.column_names)}")
    columns = tuple(_describe(data, name) for name in data.column_names)
    taken = set(given)
    groups = [c for c in columns if _groups(c, len(data)) and c.name not in taken] if client is None else []
    client = client or next((c.name for c in groups if _is_whose(c, _CLIENT_WORDS)), None)
    own = user
    if user is None:
        able = [c for c in columns if c.name not in {*taken, client} and 2 <= c.distinct <= 0.9 * len(data)]
        user = next((c.name for c in able if c.words < _TEXT_WORDS and _is_whose(c, _USER_WORDS)), None)
    texts = () if text or label else _spoken(data, columns)
    task = "causal-lm"
    rivals: tuple[str, ...] = ()
    if not texts:
        if label is None:
            label, *others = _likely_labels(columns, len(data), {*taken, client, user}, path)
            rivals = tuple(others)
        texts = tuple(text) or _likely_texts(columns, {label, client, user}, path)
        chosen = next(c for c in columns if c.name == label)
        task = "regression" if chosen.kind == "number" and _is_measured(data, chosen) else "classification"
        if task == "classification":
            _check_classes(data, chosen, path)
    needed = [*texts, *filter(None, (label, user, client))]
    for column in filter(None, (client, user)):
        data = with_one_spelling({name: data}, column)[name]
    sizes, dropped = _sizes(data, needed, client)
    held = {} if user is None else _users(data, needed, user, client)
    apart = None
    if own is None and sum(map(len, held.values())) > len(set().union(*held.values())):
        user, apart, held = None, user, {}
        needed = [*texts, *filter(None, (label, client))]
        sizes, dropped = _sizes(data, needed, client)
    _check_enough(sizes, needed, path, is_cut=len(found.data) == 1)
    users = max(map(len, held.values()), default=sizes[0] if sizes else 0)
    could_be = () if client else tuple(c.name for c in groups if c.name not in (*needed, *rivals) and _are_names(c))
    unnamed = tuple(c.name for c in columns if c.name in column_values(found.data[name], c.name))
    whose = (sizes, dropped, user, apart, users)
    return Proposal(str(path), parts, columns, task, texts, label, client, *whose, rivals, could_be, unnamed)


def _spoken(data: Dataset, columns: Sequence[Column]) -> tuple[str, ...]:
    """The column of conversations, or those of prompts and answers, where a language model is what such rows are for;
    none where the answers are classes.
    """
    if spoken := [column.name for column in columns if column.kind == "conversation"]:
        return (spoken[0],)
    said = {c.name: c for c in columns if c.kind in ("text", "number")}
    for prompt, answer in PROMPTS:
        if prompt in said and answer in said:
            few = said[answer].distinct <= min(_MOST_CLASSES, max(2, len(data) // 10))
            return () if few and said[answer].words < _TEXT_WORDS else (prompt, answer)
    return ()


def _read(path: Path, encoding: str | None, delimiter: str | None) -> Splits:
    if path.is_dir():
        return read_folder(path, encoding, delimiter)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file or folder")
    data, part = read_file(path, encoding, delimiter)
    return Splits({"train": data}, {"train": [part]})


def _describe(data: Dataset, name: str) -> Column:
    values = column_values(data, name)
    present = [value for value in values if not is_missing(value)]
    if present and all(isinstance(value, str) for value in present):
        kind, words = "text", sum(len(value.split()) for value in present) / len(present)
    else:
        numbers = present and all(isinstance(value, int | float) for value in present)
        kind, words = "number" if numbers else "conversation" if _is_spoken(present[:1]) else "other", 0.0
    spelling = one_spelling(present)
    spellings = dict.fromkeys(map(in_digits, present))
    seen = dict.fromkeys(spelling.get(text, text) for text in spellings)
    examples = tuple(sorted(seen) if len(seen) <= _MOST_SHOWN else list(seen)[:3])
    return Column(name, kind, len(seen), len(spellings), len(values) - len(present), words, examples)


def _is_spoken(values: Sequence[Any]) -> bool:
    """Whether the values are lists of messages, by the first of them."""
    first = values[0][0] if values and isinstance(values[0], list) and values[0] else None
    return isinstance(first, dict) and "role" in first


def _is_called(name: str, words: Sequence[str]) -> bool:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", composed(name))
    return any(part in words for part in re.split(r"[\W\d_]+", spaced.lower()))


def _is_whose(column: Column, words: Sequence[str]) -> bool:
    """Whether it is called by such a word, and not what somebody's label is (``user_rating``), and holds names."""
    is_called = _is_called(column.name, words) and not _is_called(column.name, _LABEL_WORDS)
    return is_called and column.kind in ("text", "number")


def _groups(column: Column, rows: int) -> bool:
    """Whether the column's values come again often enough to be those of clients."""
    return 2 <= column.distinct <= max(2, rows // 20)


def _are_names(column: Column) -> bool:
    """Whether its values look like names, and not like texts, numbers or days."""
    return (
        column.kind == "text" and column.words < _TEXT_WORDS and any(re.search(r"[^\W\d]", e) for e in column.examples)
    )


def _likely_labels(columns: Sequence[Column], rows: int, others: set[str | None], path: str | Path) -> list[str]:
    """The column that is called a label; else those of few values, fewest first."""
    able = [c for c in columns if c.name not in others and c.name != FILE_COLUMN and c.kind in ("text", "number")]
    most = min(_MOST_CLASSES, max(2, rows // 10))
    called = [c for c in able if _is_called(c.name, _LABEL_WORDS) and (c.words < _TEXT_WORDS or c.distinct <= most)]
    few = [c for c in able if 2 <= c.distinct <= most and c.words < _TEXT_WORDS]
    found = [c for c in called if c.distinct > 1][:1] or sorted(few, key=lambda c: c.distinct)
    if not found:
        lone = f": {called[0].name!r} holds {called[0]}" if called else ""
        remedy = f"name one of {', '.join(c.name for c in able)} with --label"
        if len(able) < 2:
            remedy = "a classifier needs one; a language model needs conversations, or prompts with answers"
        raise DataError(f"{path}: none of its columns looks like a label{lone}; {remedy}")
    return [column.name for column in found]


def _likely_texts(columns: Sequence[Column], others: set[str | None], path: str | Path) -> tuple[str, ...]:
    able = [c for c in columns if c.kind == "text" and c.name not in others and c.words >= _TEXT_WORDS]
    longest = sorted(able, key=lambda c: -c.words)[:2]
    if not longest:
        raise DataError(
            f"{path}: none of its columns looks like text; name one or two of {', '.join(c.name for c in columns)} "
            "with --text"
        )
    return tuple(c.name for c in columns if c in longest)


def _is_measured(data: Dataset, label: Column) -> bool:
    """Whether its numbers are amounts, and no classes: many different ones, or fractions."""
    values = (value for value in column_values(data, label.name) if not is_missing(value))
    return label.distinct > 20 or any(isinstance(value, float) and not value.is_integer() for value in values)


def _check_classes(data: Dataset, label: Column, path: str | Path) -> None:
    """Refuses a label that is no class; where nearly all of its cells are numbers, names those that are not."""
    present = [(row, value) for row, value in enumerate(column_values(data, label.name)) if not is_missing(value)]
    if not are_no_classes(label.distinct, len(present)):
        return
    odd = [(row, value) for row, value in present if not is_number(value)]
    said = f"{path}: column {label.name!r} has {label.distinct} different values in {len(present)} rows, no classes"
    if 0 < len(odd) < len(present) / 10:
        cells = ", ".join(f"{value!r} in row {row}" for row, value in odd[:_MOST_SHOWN])
        raise DataError(f"{said}; {len(odd)} are no finite numbers (rows from 0): {cells}; mend or empty these cells")
    raise DataError(f"{said}; name another column with --label")


def _check_enough(sizes: Sequence[int], needed: Sequence[str], path: str | Path, is_cut: bool) -> None:
    """Refuses rows that are too few to train on, or, where they are cut, to hold some out."""
    if not sum(sizes):
        raise DataError(
            f"{path}: no row has all of {', '.join(dict.fromkeys(needed))}; fill their empty cells, or name other "
            "columns with --text, --label, --client and --user"
        )
    if is_cut and sum(sizes) < FEWEST_ROWS / min(DEFAULT_FRACTIONS):
        raise DataError(
            f"{path}: {sum(sizes)} rows can be used, too few to hold a tenth out for validation and a fifth for the "
            f"test; give {FEWEST_ROWS / min(DEFAULT_FRACTIONS):.0f} or more"
        )


def _users(data: Dataset, needed: Sequence[str], user: str, client: str | None) -> dict[str, set[str]]:
    """Who has rows at each client."""
    values = {column: column_values(data, column) for column in needed}
    held: dict[str, set[str]] = {}
    for row in range(len(data)):
        if not any(is_missing(column[row]) for column in values.values()):
            held.setdefault(name_of(values[client][row]) if client else "", set()).add(name_of(values[user][row]))
    return held


def _sizes(data: Dataset, needed: Sequence[str], client: str | None) -> tuple[tuple[int, ...], int]:
    values = [column_values(data, column) for column in needed]
    whole = [row for row in range(len(data)) if not any(is_missing(column[row]) for column in values)]
    if client is None:
        return (len(whole),), len(data) - len(whole)
    counts: dict[str, int] = {}
    for row in whole:
        name = name_of(values[-1][row])
        counts[name] = counts.get(name, 0) + 1
    return tuple(sorted(counts.values(), reverse=True)), len(data) - len(whole)
