"""Second names of keys: PEFT's and Opacus's words for what has a name here already, in files, flags and Python."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from .messages import ConfigError, no_such_key

Kind = TypeVar("Kind")

#: Opacus's words, and the short ones.
PRIVACY_NAMES = {"target_delta": "delta", "epsilon": "target_epsilon"}
#: By section, second names and the keys that they stand for.
OTHER_NAMES: dict[str, dict[str, str]] = {
    "adapter": {
        "r": "rank",
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
        "init_lora_weights": "init",
    },
    "privacy": PRIVACY_NAMES,
}
_DOTTED = {f"{section}.{o}": f"{section}.{k}" for section, names in OTHER_NAMES.items() for o, k in names.items()}


def dotted_names(key: str = "") -> list[str]:
    """The second names, dotted, of a dotted key (of all keys by default)."""
    return [other for other, own in _DOTTED.items() if key in ("", own)]


def one_name_each(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """``values`` with second names replaced by the keys that they stand for.

    Raises:
        ConfigError: a key is given under two names with different values.
    """
    found: dict[str, Any] = {}
    given: dict[str, str] = {}
    for name, value in values.items():
        own = names.get(name, name)
        if own in found and found[own] != value:
            raise ConfigError(
                f"{given[own]}={found[own]!r} and {name}={value!r} are two names of one key; give one of them"
            )
        found.setdefault(own, value)
        given.setdefault(own, name)
    return found


def in_own_names(layer: Mapping[str, Any]) -> dict[str, Any]:
    """A layer of a run's configuration, nested or dotted, with second names replaced, also within ``methods``."""
    result: dict[str, Any] = {}
    for key, value in one_name_each(layer, _DOTTED).items():
        head, _, rest = str(key).partition(".")
        if head == "methods" and isinstance(value, Mapping):
            value = in_own_names(value) if rest else {name: _of_method(one) for name, one in value.items()}
        elif isinstance(value, Mapping):
            value = one_name_each(value, OTHER_NAMES.get(key, {}))
        elif head == "methods" and rest:
            method, _, inner = rest.partition(".")
            key = f"methods.{method}.{_DOTTED.get(inner, inner)}" if inner else key
        result[key] = value
    return result


def _of_method(changes: Any) -> Any:
    return in_own_names(changes) if isinstance(changes, Mapping) else changes


def takes_names(names: Mapping[str, str]) -> Callable[[type[Kind]], type[Kind]]:
    """Lets a dataclass be made with second names of its fields; a name that it does not know raises ConfigError."""

    def decorate(kind: type[Kind]) -> type[Kind]:
        made = kind.__init__
        known = [field.name for field in fields(kind) if field.init]  # type: ignore[arg-type]

        @functools.wraps(made)
        def __init__(self: Any, *positional: Any, **values: Any) -> None:
            unknown = [name for name in values if name not in known and name not in names]
            if unknown:
                raise ConfigError(f"{kind.__name__}: " + no_such_key(unknown[0], [*known, *names]))
            made(self, *positional, **one_name_each(values, names))

        kind.__init__ = __init__  # type: ignore[method-assign]
        return kind

    return decorate
