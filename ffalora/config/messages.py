"""What is said about a configuration that cannot be used: the key, its value, what it must be, and near matches."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from typing import Any

#: Words that other tools have for what is called so here.
_ELSEWHERE = {
    "learning_rate": "optimizer.lr",
    "epochs": "federation.rounds",
    "num_train_epochs": "federation.rounds",
    "num_clients": "clients.count",
    "client_column": "clients.column",
    "dataset": "data.name",
    "file": "data.name",
    "path": "data.name",
    "columns": "data.text",
    "text_column": "data.text",
    "label_column": "data.label",
    "sep": "data.delimiter",
    "lora": "adapter",
    "peft": "adapter",
    "training": "optimizer",
    "sigma": "privacy.noise_multiplier",
    "clip": "privacy.max_grad_norm",
    "batch": "optimizer.batch_size",
}


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names each key, its value and the remedy."""


_WANTED = {
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "finite_number": "finite",
    "literal_error": "one of {expected}",
    "model_type": "a section of keys and values",
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list, [a, b]",
    "dict": "keys and values, {key: value}",
}


def explain_errors(errors: Sequence[Any], keys: Collection[str], whole: str = "configuration") -> list[str]:
    """One sentence for each key that pydantic's ``errors`` complain about; ``keys`` are all that exist, dotted;
    ``whole`` is the name of what has them.
    """
    by_key: dict[str, list[Any]] = {}
    for error in errors:
        unknown = error["type"] == "extra_forbidden"
        key = ".".join(map(str, error["loc"])) if unknown else _key(error["loc"], keys)
        by_key.setdefault(key or whole, []).append(error)
    return [_sentence(key, found, keys) for key, found in by_key.items()]


def near_keys(key: str, keys: Collection[str]) -> list[str]:
    """Up to three existing keys or sections that ``key`` may have been meant for."""
    known = dict.fromkeys([*keys, *(k.partition(".")[0] for k in keys)])
    by_name: dict[str, list[str]] = {}
    for other in known:
        by_name.setdefault(other.rpartition(".")[2], []).append(other)
    section, _, name = key.rpartition(".")
    names = difflib.get_close_matches(name, by_name, n=3, cutoff=0.7)
    same_name = sorted((k for n in names for k in by_name[n]), key=lambda k: (not k.startswith(f"{section}."), names))
    close = difflib.get_close_matches(key, keys if section else known, n=2, cutoff=0.8)
    meant = [_ELSEWHERE[word] for word in (key, name) if _ELSEWHERE.get(word) in known]
    in_a_section = "." in key and name in by_name
    return list(dict.fromkeys([*meant, *(same_name if in_a_section else [*close, *same_name])]))[:3]


def no_such_key(key: str, keys: Collection[str]) -> str:
    """That ``key`` does not exist, with what may have been meant, or what there is."""
    near = near_keys(key, keys)
    all_of_them = "--help-all lists all keys" if any("." in k for k in keys) else f"there are {', '.join(keys)}"
    return f"{key}: there is no such key; " + (f"did you mean {' or '.join(near)}?" if near else all_of_them)


def _sentence(key: str, errors: list[Any], keys: Collection[str]) -> str:
    first = errors[0]
    value = first["input"]
    if first["type"] == "extra_forbidden":
        return no_such_key(key, keys)
    if first["type"] == "value_error":
        return f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
    wanted = list(dict.fromkeys(filter(None, map(_wanted, errors))))
    said = f"must be {' or '.join(wanted)}" if wanted else first["msg"]
    if first["type"] == "literal_error" and isinstance(value, str):
        near = difflib.get_close_matches(
            value, first["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", "), n=1
        )
        said += f"; did you mean {near[0]}?" if near else ""
    return f"{key}={value!r}: {said}"


def _wanted(error: Any) -> str | None:
    if error["type"] in _WANTED:
        return _WANTED[error["type"]].format(**error.get("ctx", {}))
    return _KINDS.get(error["type"].partition("_")[0])


def _key(place: tuple[str | int, ...], keys: Collection[str]) -> str:
    """The dotted key at pydantic's ``place``, without the names of the alternatives that it tried below a key."""
    for length in range(len(place), 0, -1):
        key = ".".join(map(str, place[:length]))
        if key in keys:
            return key + "".join(f"[{part}]" for part in place[length:] if isinstance(part, int))
    return ".".join(map(str, place))
