"""Which layers of a model are adapted, and which form its task head: names matched as PEFT matches them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from .base_layers import conv1d
from .torch_layers import unread_outputs

if TYPE_CHECKING:
    from ..config.adapter import AdapterConfig

#: Suffixes of the query and value projections, by family; 'auto' takes the first row that a model has.
QUERY_VALUE = (
    ("query", "value"),
    ("q_proj", "v_proj"),
    ("q_lin", "v_lin"),
    ("query_proj", "value_proj"),
    ("SelfAttention.q", "SelfAttention.v", "EncDecAttention.q", "EncDecAttention.v"),
    ("query_key_value",),
    ("qkv_proj",),
    ("Wqkv",),
    ("qkv",),
    ("c_attn",),
    ("in_proj",),
)
HEADS = (
    "classifier",
    "score",
    "classification_head",
    "qa_outputs",
    "pre_classifier",
    "lm_head",
    "embed_out",
    "projector",
)


def not_compiled(model: nn.Module) -> nn.Module:
    """The model under the names that it had before ``torch.compile``, which calls this very one."""
    return getattr(model, "_orig_mod", model)


def is_compiled(model: nn.Module) -> bool:
    """Whether torch's compiler runs the model, as ``torch.compile`` returned it or in place."""
    return not_compiled(model) is not model or model._compiled_call_impl is not None


def find_targets(model: nn.Module, config: AdapterConfig) -> dict[str, nn.Module]:
    """The layers that ``config`` names, by dotted name, without those in modules that the model says it never reads
    (its ``unread``, dotted names): adapters there would be trained by nothing.

    Raises:
        ValueError: nothing matches, a name in ``target_modules`` matches nothing (near matches are listed), or a layer
            whose forward is never called.
    """
    wanted = config.target_modules
    kinds = (nn.Linear,) if wanted in ("auto", "all-linear") else (nn.Linear, nn.Conv2d)
    linear = {n: m for n, m in model.named_modules() if isinstance(m, kinds) or conv1d(m)}
    outputs = unread_outputs(model)
    if wanted == "auto":
        wanted = next((list(row) for row in QUERY_VALUE if any(_ends(n, s) for n in linear for s in row)), [])
        found = {n: m for n, m in linear.items() if any(_ends(n, s) for s in wanted)}
    elif wanted == "all-linear":
        heads = {id(m) for m in find_head(model).values()} | {id(output_embeddings(model))}
        found = {n: m for n, m in linear.items() if id(m) not in heads and n not in outputs}
    elif isinstance(wanted, str):
        found = {n: m for n, m in linear.items() if _full_match("target_modules", wanted, n)}
    else:
        for name in wanted:
            if not any(_ends(n, name) for n in linear):
                raise ValueError(_no_match(name, model, linear))
        found = {n: m for n, m in linear.items() if any(_ends(n, name) for name in wanted)}
    unread = tuple(f"{name}." for name in getattr(model, "unread", ()))
    found = {n: m for n, m in found.items() if not _excluded(n, config) and not f"{n}.".startswith(unread)}
    if mistaken := [reason for name, reason in outputs.items() if name in found]:
        raise ValueError(f"target_modules={config.target_modules!r}: {mistaken[0]}")
    if not found and (there := _other_layers(linear, config)):
        raise ValueError(
            f"layers_to_transform={config.layers_to_transform} names none of this model's layers, which are "
            f"{there[0]} to {there[-1]}; choose among them"
        )
    if not found:
        suffixes = sorted({n.rsplit(".", 1)[-1] for n in linear})
        raise ValueError(
            f"target_modules={config.target_modules!r} matches no linear layer that is read and not excluded; "
            f"this model's linear layers are called {', '.join(suffixes)}"
        )
    return found


def head_names(model: nn.Module) -> list[str]:
    """Dotted names of the modules that form the task head."""
    return [n for n, _ in model.named_modules() if n.rsplit(".", 1)[-1] in HEADS and n.count(".") <= 1]


def find_head(model: nn.Module) -> dict[str, nn.Module]:
    """Layers with parameters inside the model's task head, by dotted name (none for a bare encoder)."""
    heads = head_names(model)
    return {
        n: m
        for n, m in model.named_modules()
        if any(n == h or n.startswith(h + ".") for h in heads) and next(m.parameters(recurse=False), None) is not None
    }


def pattern_value(pattern: dict, name: str, default):
    """The value whose key matches ``name`` as suffix or regular expression (PEFT's rank_pattern, alpha_pattern)."""
    for key, value in pattern.items():
        if re.fullmatch(rf"(.*\.)?({key})", name):
            return value
    return default


def _ends(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith("." + suffix)


def _full_match(parameter: str, pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise ValueError(
            f"{parameter}={pattern!r} is not a regular expression: {error}; or give a list of names"
        ) from None


def _excluded(name: str, config: AdapterConfig) -> bool:
    out = config.exclude_modules
    if out is not None and (
        _full_match("exclude_modules", out, name) if isinstance(out, str) else any(_ends(name, s) for s in out)
    ):
        return True
    if config.layers_to_transform is None:
        return False
    return _layer_index(name, config.layers_pattern) not in config.layers_to_transform


def _other_layers(names: Iterable[str], config: AdapterConfig) -> list[int]:
    """The indices that layers have, rising, where ``layers_to_transform`` has none of them."""
    wanted = config.layers_to_transform
    there = {index for name in names if (index := _layer_index(name, config.layers_pattern)) is not None}
    return sorted(there) if wanted is not None and there.isdisjoint(wanted) else []


def _layer_index(name: str, pattern: str | list[str] | None) -> int | None:
    """Position in the layer stack: the first number in the name, or the one behind ``pattern`` (as PEFT counts)."""
    pattern = pattern or r"[^.]*"
    for stack in [pattern] if isinstance(pattern, str) else pattern:
        if found := re.match(rf"(?:^|.*?\.){stack}\.(\d+)\.", name):
            return int(found[1])
    return None


def output_embeddings(model: nn.Module) -> nn.Module | None:
    """The output layer of a language model, None where there is none."""
    get = getattr(model, "get_output_embeddings", None)
    try:
        return get() if get else None
    except (AttributeError, NotImplementedError):  # some models declare it without having one
        return None


def _no_match(name: str, model: nn.Module, linear: dict[str, nn.Module]) -> str:
    every = {n for n, _ in model.named_modules() if n}
    if any(_ends(n, name) for n in every):
        kind = next(type(m).__name__ for n, m in model.named_modules() if _ends(n, name))
        return f"target_modules: {name!r} is a {kind}, not a linear layer; name linear layers, or use 'all-linear'"
    suffixes = {n.rsplit(".", 1)[-1] for n in linear}
    near = difflib.get_close_matches(name, suffixes, n=3, cutoff=0.4) or sorted(suffixes)[:8]
    return f"target_modules: no linear layer is called {name!r}; near matches: {', '.join(near)}"
