"""Spellings of one name: blanks around it, Unicode forms and case do not make it another."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any


def composed(name: Any) -> Any:
    """A name in Unicode's form NFC; what is no text stays."""
    return unicodedata.normalize("NFC", name) if isinstance(name, str) else name


def key_of(name: str) -> str:
    """What all spellings of a name have in common. A single character keeps its case."""
    text = composed(name).strip()
    return composed(text.casefold()) if len(text) > 1 else text


def one_spelling(values: Iterable[Any]) -> dict[str, str]:
    """Every string among ``values`` -> the spelling that stands for it: of those that occur the last in order, which
    has the fewest capitals. How often each occurs plays no part.
    """
    kept: dict[str, str] = {}
    keys = {value: key_of(value) for value in values if isinstance(value, str)}
    for value, key in keys.items():
        kept[key] = max(kept.get(key, ""), composed(value).strip())
    return {value: kept[key] for value, key in keys.items()}


def match(name: str, names: Sequence[str]) -> str:
    """The one of ``names`` that ``name`` is a spelling of; ``name`` itself where it is there, or none is."""
    return name if name in names else {key_of(other): other for other in names}.get(key_of(name), name)


def name_of(value: Any) -> str:
    """The name that a cell holds, one for a number however a file writes it: 7, 7.0, ``7`` and ``007``."""
    name = str(int(value)) if is_whole(value) else str(value).strip()
    return re.sub(r"\+?0+(?=\d+$)", "", name) if name[:1] in "+0" else name


def is_whole(value: Any) -> bool:
    """Whether it is a whole number that a file holds as one with decimals."""
    return isinstance(value, float) and value.is_integer()
