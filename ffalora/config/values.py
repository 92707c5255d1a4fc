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

    Names of modules, classes and splits (``NAMED_ELSEWHERE``) stay whole.

    Raises:
        ConfigError: a key lies below what is no section, or has two names with different values in one layer.
    """
    return _laid_over(in_own_names(values), in_own_names(changes))


def _laid_over(values: Mapping[str, Any], changes: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    if section in NAMED_ELSEWHERE:
        return {str(name): value for layer in (values, changes) for name, value in layer.items()}
    result = {
        k: (_laid_over({}, v, _below(section, k)) if isinstance(v, Mapping) and k != "methods" else v)
        for k, v in values.items()
    }
    for key, value in changes.items():
        head, _, rest = str(key).partition(".")
        if rest or (isinstance(value, Mapping) and head != "methods" and isinstance(result.get(head, {}), Mapping)):
            inner = result.get(head, {})
            if not isinstance(inner, Mapping):
                raise ConfigError(f"{key}: {head} is not a section")
            result[head] = _laid_over(inner, {rest: value} if rest else value, _below(section, head))
        else:
            result[head] = value
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
