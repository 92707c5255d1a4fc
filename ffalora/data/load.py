"""`load_data`: embedded name, local file or folder, or hub name -> checked train, validation and test splits."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from . import assets, embedded, files, validate
from .columns import guess_inputs, numbers_as_text
from .conversations import Form, check_language, form_of
from .errors import DataError
from .labels import (
    check_classes,
    check_numbers,
    describe,
    encode_classes,
    encode_numbers,
    number_classes,
    with_one_spelling,
)
from .places import Places
from .roles import assign_roles, rows_of_role, what_there_is
from .sources import read_embedded, read_other
from .splits import (
    ALL,
    DEFAULT_FRACTIONS,
    FEWEST_ROWS,
    ROLES,
    check_fractions,
    joined,
    mix_rows,
    sample_rows,
    split_rows,
)
from .tasks import find_task
from .users import Owners, check_users

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


@dataclass
class LoadedData:
    """Checked data. ``splits`` maps train, validation, test to ``datasets.Dataset``, and ``places`` says where their
    rows stand in the source; labels are 0 … classes-1. ``cut`` names the splits that are shares of the training rows.
    """

    name: str
    task: str
    splits: dict[str, Dataset]
    input_columns: tuple[str, ...]
    label_column: str | None
    label_names: list[str] | None = None
    client_column: str | None = None
    user_column: str | None = None
    licence: str | None = None
    notes: list[str] = field(default_factory=list)
    places: dict[str, Places] = field(default_factory=dict)
    cut: tuple[str, ...] = ()

    @property
    def train(self) -> Dataset:
        return self.splits["train"]

    @property
    def validation(self) -> Dataset | None:
        return self.splits.get("validation")

    @property
    def test(self) -> Dataset | None:
        return self.splits.get("test")

    @property
    def form(self) -> Form | None:
        """What a language model learns of a row; None for other tasks."""
        rows = next(iter(self.splits.values()), None)
        return form_of(rows, self.input_columns) if rows is not None and self.task == "causal-lm" else None

    @property
    def num_labels(self) -> int:
        """Outputs the model needs: number of classes, or 1 for regression."""
        return len(self.label_names) if self.label_names else 1


def load_data(
    spec: str,
    *,
    task: str | None = None,
    input_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    client_column: str | None = None,
    user_column: str | None = None,
    group_column: str | None = None,
    split_names: Mapping[str, str] | None = None,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    split_seed: int = 0,
    max_samples: int | None = None,
    seed: int = 0,
    drop_empty: bool = False,
    only: str | None = None,
    class_names: Sequence[str] | None = None,
    class_map: Mapping[str, str] | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
) -> LoadedData:
    """Load, check and split.

    spec           embedded name ("movie-reviews"), path of a file or folder, or hub name ("owner/name",
                   "owner/name:config", "glue/sst2")
    task           a name in ``tasks.TASKS``; default: the embedded data's own, else classification
    input_columns  one text column, two for pairs, or the image column; for causal-lm (prompt, answer), or one column of
                   conversations (lists of messages) or of texts;
                   default: the embedded data's own, else "text", "sentence" or the only column of strings
    label_column   default: the embedded data's own, else "label"
    client_column  column that says whose row it is (natural clients), kept for the partition
    user_column    column that says whose each row is: a name, or a list of names
    group_column   rows that agree in it stay in one split, as those of one user do; without either, those with the same
                   inputs
    split_names    e.g. {"train": "train", "test": "validation"}: which split of the source plays which role
    fractions      of train, validation and test; used for the roles that the source does not fill
    split_seed     of the cut; kept apart from ``seed`` so that runs with different seeds share their test split
    max_samples    at most that many training rows, drawn from ``seed``
    drop_empty     leave out rows whose text, label or client is empty instead of refusing them
    only           a role: nothing is cut. The source's split of this name (or the one that ``split_names`` gives it, or
                   else rows of no split, or the only split) is the only one that is made, whole
    class_names    the classes of a model that exists already, in its order: rows are numbered by name, some classes
                   may have no rows, and other classes are refused
    class_map      names of classes as the source writes them -> as ``class_names`` has them
    encoding, delimiter
                   of CSV files, such as "cp1252" and ";"; default: found in each file

    Raises ``DataError`` (names column, rows and remedy) and ``AssetError`` (embedded data that cannot be fetched).
    """
    fractions = check_fractions(fractions)
    own = embedded.EMBEDDED.get(spec)
    task = task or (own.task if own else "classification")
    find_task(task)
    if own and task != own.task and not (input_columns or label_column):
        raise DataError(f"task={task!r}: {spec} is data for task {own.task}; name its columns to use it otherwise")
    found = read_embedded(own) if own else read_other(spec, encoding, delimiter)
    source = found.data
    if own is not None:
        input_columns = input_columns or own.input_columns
        label_column = label_column or own.label_column
        client_column = client_column or own.client_column
        group_column = group_column or (None if user_column else own.group_column)
    first, client_column = next(iter(source.values())), client_column or found.client
    label_column = None if task == "causal-lm" else label_column or "label"
    inputs = tuple(input_columns) if input_columns else guess_inputs(first, label_column, task, spec)
    licence = assets.find(own.asset).licence if own else None
    loaded = LoadedData(spec, task, {}, inputs, label_column, None, client_column, user_column, licence)
    wanted = {role: name for role, name in (split_names or {}).items() if only in (None, role)}
    roles = assign_roles(source, wanted, spec)
    if only is not None:
        roles = {only: rows_of_role(roles, source, only, spec)}
    else:
        roles = {role: data for role, data in roles.items() if not _unlabelled(loaded, role, data, spec)}
        if "train" not in roles and ALL not in roles:
            raise DataError(f"{spec}: no rows are left to train on; {what_there_is(source)}")
    learned = ALL if ALL in roles else "train"
    roles = {role: roles[role] for role in sorted(roles, key=lambda role: role != learned)}
    _check_columns(loaded)
    places = {role: _places(found, data) for role, data in roles.items()}
    if task == "causal-lm":
        roles = {role: numbers_as_text(data, inputs) for role, data in roles.items()}
    roles = _checked_rows(roles, places, loaded, group_column, drop_empty, class_names is None and learned)
    for column in filter(None, {client_column, user_column}):
        roles = with_one_spelling(roles, column)
    if task == "regression":
        roles = encode_numbers(roles, str(label_column))
    elif label_column is not None:
        names = own.label_names if own else None
        if class_names is not None:
            roles, loaded.label_names = number_classes(roles, label_column, spec, class_names, class_map or {}, names)
        else:
            roles, loaded.label_names = encode_classes(roles, label_column, spec, names)
    if only is None:
        roles = _fill_roles(roles, places, loaded, group_column, fractions, split_seed)
    for role, data in roles.items():
        # Sources are often sorted by class: evaluation rows are mixed, so that the first n of them are a fair sample.
        kept = sample_rows(len(data), max_samples, seed) if role == "train" else mix_rows(len(data), split_seed)
        loaded.splits[role], loaded.places[role] = data.select(kept), places[role].select(kept)
    if only is None:
        _check_splits(loaded, fractions)
    return loaded


def _unlabelled(loaded: LoadedData, role: str, data: Dataset, spec: str) -> bool:
    """Benchmarks publish test splits whose labels are all -1; such a split is of no use here."""
    column = loaded.label_column
    if role in ("train", ALL) or column is None or column not in data.column_names or loaded.task == "regression":
        return False
    if any(value != -1 for value in validate.column_values(data, column)):
        return False
    loaded.notes.append(f"split {role} of {spec} has no labels (all -1) and is not used")
    logger.warning("%s", loaded.notes[-1])
    return True


def _check_columns(loaded: LoadedData) -> None:
    if len(loaded.input_columns) > 2:
        one_or_two = "one column (texts or conversations) or two (prompt and answer)"
        takes = one_or_two if loaded.task == "causal-lm" else "one text column or two (a pair)"
        raise DataError(f"input_columns={list(loaded.input_columns)}: task {loaded.task} takes {takes}")


def _places(found: files.Splits, data: Dataset) -> Places:
    """Where the rows of one of the source's splits stand."""
    return Places(next((found.parts.get(name, ()) for name, rows in found.data.items() if rows is data), ()))


def _checked_rows(
    roles: dict[str, Dataset],
    places: dict[str, Places],
    loaded: LoadedData,
    group_column: str | None,
    drop_empty: bool,
    learned: str | bool,
) -> dict[str, Dataset]:
    """The rows that can be used, of every role, whose ``places`` follow; ``DataError`` holds all problems of all."""
    checks = {role: validate.RowCheck(data, places[role]) for role, data in roles.items()}
    for role, check in checks.items():
        if loaded.task == "causal-lm":
            check_language(check, "input_columns", loaded.input_columns)
        else:
            of_input = check.has if loaded.task == "image-classification" else check.text
            for column in loaded.input_columns:
                of_input("input_columns", column)
        if loaded.task == "regression":
            check_numbers(check, str(loaded.label_column))
        elif loaded.label_column is not None:
            check_classes(check, loaded.label_column, is_learned=role == learned)
        for parameter, other in (("client_column", loaded.client_column), ("group_column", group_column)):
            if other not in (None, loaded.user_column) and check.has(parameter, str(other)):
                check.present(parameter, str(other))
        if loaded.user_column is not None:
            check_users(check, "user_column", loaded.user_column)
    validate.refuse({describe(loaded.name, role): check for role, check in checks.items()}, drop_empty)
    used = {role: check.kept() for role, check in checks.items()}
    for role, kept in used.items():
        if len(kept) < len(roles[role]):
            left_out = len(roles[role]) - len(kept)
            loaded.notes.append(f"{describe(loaded.name, role)}: {left_out} rows with an empty cell are left out")
            logger.warning("%s", loaded.notes[-1])
            roles[role], places[role] = roles[role].select(kept), places[role].select(kept)
    return roles


def _fill_roles(
    roles: dict[str, Dataset],
    places: dict[str, Places],
    loaded: LoadedData,
    group_column: str | None,
    fractions: Sequence[float],
    seed: int,
) -> dict[str, Dataset]:
    """Cut the roles that the source does not fill out of its training rows; ``places`` follow."""
    learned = ALL if ALL in roles else "train"
    if learned not in roles:
        raise ValueError(f"roles {list(roles)}: neither {ALL!r} nor 'train' among them")
    whole, where = roles[learned], places[learned]
    filled = {role: data for role, data in roles.items() if role in ("validation", "test")}
    _, validation, test = fractions
    validation, test = (0.0 if "validation" in filled else validation), (0.0 if "test" in filled else test)
    together: list[Sequence[Sequence[str]]] = []
    if group_column is not None:
        together.append([[key] for key in _keys(whole, group_column)])
    if loaded.user_column is not None:
        owners = Owners.of(validate.column_values(whole, loaded.user_column))
        together.append([[owners.names[i] for i in users] for users in np.split(owners.users, owners.starts[1:-1])])
    if not together:
        every = zip(*(_keys(whole, column) for column in loaded.input_columns), strict=True)
        together.append([["\x1f".join(values)] for values in every])
    loaded.cut = tuple(role for role, share in (("validation", validation), ("test", test)) if share)
    rows = split_rows(joined(*together), (1 - validation - test, validation, test), seed)
    cut = {role: whole.select(part) for role, part in rows.items()}
    for role in rows.keys() - filled.keys():
        places[role] = where.select(rows[role])
    return {role: (filled | cut)[role] for role in ROLES if role in filled or role in cut}


def _keys(data: Dataset, column: str) -> list[str]:
    """What tells the values of a column apart, alike in every process: text, or a digest of an image's file."""
    from datasets import Image

    if not isinstance(data.features[column], Image):
        return [str(value) for value in validate.column_values(data, column)]
    stored = data.select_columns(column).cast_column(column, Image(decode=False))
    return [
        hashlib.blake2b(row[column]["bytes"] or str(row[column]["path"]).encode(), digest_size=16).hexdigest()
        for row in stored
    ]


def _check_splits(loaded: LoadedData, fractions: Sequence[float]) -> None:
    wanted = {role for role, fraction in zip(ROLES, fractions, strict=True) if fraction > 0}
    for role in ROLES:
        rows = len(loaded.splits.get(role, ()))
        if rows < FEWEST_ROWS and (role in wanted or role in loaded.splits):
            raise DataError(
                f"split {role} of {loaded.name} has {rows} rows, fewer than {FEWEST_ROWS}; give more data, a larger "
                f"fraction (fractions={list(fractions)}: data.validation_fraction, data.test_fraction and the rest), a "
                "larger data.max_samples, or fraction 0 to do without it"
                + (" (rows of a user, and of what they share, stay in one split)" if loaded.user_column else "")
            )
    if loaded.label_names:
        here = len(set(validate.column_values(loaded.splits["train"], str(loaded.label_column))))
        if here < 2:
            raise DataError(
                f"split train of {loaded.name} holds one class only; give more data or a larger max_samples"
            )
