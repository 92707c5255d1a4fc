"""Which of a source's splits play which roles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .errors import DataError
from .splits import ALL, ROLES

if TYPE_CHECKING:
    from datasets import Dataset


def assign_roles(source: dict[str, Dataset], split_names: Mapping[str, str] | None, spec: str) -> dict[str, Dataset]:
    """Rows by role (or ``ALL``): those of the splits that ``split_names`` gives them, else of splits called so.

    Raises:
        DataError: no such role, or no such split.
    """
    if not split_names:
        return {role: data for role, data in source.items() if role in (*ROLES, ALL)}
    named = source | ({"train": source[ALL]} if ALL in source else {})
    roles = {}
    for role, name in split_names.items():
        if role not in ROLES:
            raise DataError(f"split_names: role {role!r} is not one of {', '.join(ROLES)}")
        if name not in named:
            raise DataError(f"split_names.{role}={name!r}: {spec} has no such rows; {what_there_is(source)}")
        roles[role] = named[name]
    return roles


def what_there_is(source: dict[str, Dataset]) -> str:
    """What names a source's rows have, in an order to choose among them."""
    if list(source) == [ALL]:
        return "all its rows are one table: leave split_names out to hold some of them out, or name them train"
    return f"its splits are {', '.join(source)}: name one of them"


def rows_of_role(roles: dict[str, Dataset], source: dict[str, Dataset], role: str, spec: str) -> Dataset:
    """All rows that play one role: those of the split called so, of no split, or of the only split."""
    for name in (role, ALL):
        if name in roles:
            return roles[name]
    if len(source) == 1:
        return next(iter(source.values()))
    raise DataError(f"{spec} has the splits {', '.join(source)}, none of them {role}; name one in split_names.{role}")
