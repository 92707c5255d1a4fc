"""Nested keys and values of configurations: laying one over another, and saying where two differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .messages import ConfigError
from .names import in_own_names

#: Sections whose keys are names in a model or in data, which may hold dots.
NAMED_ELSEWHERE = frozenset({"adapter.rank_pattern", "adapter.alpha_pattern", "data.label_texts", "data.splits"})


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes`` laid over them, under whichever of their names; keys may be nested or dotted.

    Names of modules, classes and splits (``NAMED_ELSEWHERE``) stay whole. ``methods`` given as one take the place of
    all that there were.

    Raises:
        ConfigError: a key lies below what is no section, or is given twice with different values in one layer.
    """
    below, above = _nested(in_own_names(values)), _nested(in_own_names(changes))
    if "methods" in changes:
        below.pop("methods", None)
    return _laid_over(below, above)


def _nested(layer: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """A layer without dotted keys."""
    if section in NAMED_ELSEWHERE:
        return {str(name): value for name, value in layer.items()}
    result: dict[str, Any] = {}
    for key, value in layer.items():
        head, _, rest = str(key).partition(".")
        if key == "methods" and isinstance(value, Mapping):
            value = {str(name): _nested(one) if isinstance(one, Mapping) else one for name, one in value.items()}
        elif rest or isinstance(value, Mapping):
            value = _nested({rest: value} if rest else value, _below(section, head))
        result = _laid_over(result, {head: value}, section, is_one_layer=True)
    return result


def _laid_over(
    values: Mapping[str, Any], changes: Mapping[str, Any], section: str = "", is_one_layer: bool = False
) -> dict[str, Any]:
    """Nested ``values`` with nested ``changes``; within one layer they must not differ."""
    result = dict(values)
    for key, value in changes.items():
        before = result.get(key)
        where = f"{section}.{key}" if section else key
        if isinstance(value, Mapping) and before is not None:
            if not isinstance(before, Mapping):
                raise ConfigError(f"{where}={before!r}: {where} is a section of keys and values")
            value = _laid_over(before, value, where, is_one_layer)
        elif is_one_layer and key in result and before != value:
            raise ConfigError(f"{where} is {before!r} and {value!r}; give one of them")
        result[key] = value
    return result


def _below(section: str, key: str) -> str:
    """The section at a key of ``section``; a method has those of the whole configuration."""
    if section == "methods":
        return ""
    return f"{section}.{key}" if section else key


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``KEY was VALUE and is VALUE`` for each dotted key in which two dumped configurations differ."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key} was {before!r} and is {after!r}")
    return found
