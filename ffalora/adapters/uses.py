"""How a model uses its trained layers: how often, and which rows belong to which sample. Found once, by probing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .layers import TrainedLayer


def probe_uses(model: nn.Module, layers: Iterable[TrainedLayer], inputs: Mapping[str, Any] | Tensor) -> dict[str, int]:
    """Sets ``shared_use`` and ``folded`` of the layers; returns how often one forward pass uses each.

    A layer whose input leads with a multiple of the samples is folded (windows of an image, flattened tokens) only if
    changing the first sample changes nothing behind the first sample's share of its rows.
    """
    layers, given = list(layers), dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}
    samples = next((len(value) for value in given.values() if isinstance(value, Tensor) and value.dim()), 0)
    if samples == 1:  # twice: with one sample nothing can be told apart
        samples, given = 2, {name: _repeated(value) for name, value in given.items()}
    with _quiet(model), torch.no_grad():
        seen = _record(model, layers, given, samples)
        folds = {name for name, rows in seen.items() if any(_is_multiple(x, samples) for x in rows)}
        other = with_another_first_sample(given) if folds else None
        changed = {} if other is None else _record(model, layers, other, samples)
        folds = {name for name in changed if name in folds and _first_share_only(seen[name], changed[name], samples)}
    for layer in layers:
        layer.shared_use = len(seen[layer.name]) > 1
        layer.folded = layer.name in folds
    return {name: len(rows) for name, rows in seen.items()}


def _record(
    model: nn.Module, layers: list[TrainedLayer], inputs: dict[str, Any], samples: int
) -> dict[str, list[Tensor]]:
    """The inputs of every use of each layer; those that lead with the samples are kept as empty tensors."""
    seen: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}

    def keep(rows: list[Tensor], _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x = arguments[0]
        rows.append(x.detach().clone() if _is_multiple(x, samples) else x.new_empty(0))

    handles = [layer.module.register_forward_pre_hook(partial(keep, seen[layer.name])) for layer in layers]
    try:
        model(inputs[""]) if "" in inputs else model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _is_multiple(x: Tensor, samples: int) -> bool:
    return x.dim() > 1 and x.shape[0] > samples > 0 and x.shape[0] % samples == 0


def _first_share_only(before: list[Tensor], after: list[Tensor], samples: int) -> bool:
    for first, second in zip(before, after, strict=True):
        if not _is_multiple(first, samples) or first.shape != second.shape:
            return False
        share = len(first) // samples
        moved = (first - second).float().flatten(1).abs().amax(1)
        scale = first.float().square().mean().sqrt()
        if bool((moved[share:] > 1e-4 * scale).any()) or not bool((moved[:share] > 1e-4 * scale).any()):
            return False
    return True


def _repeated(value: Any) -> Any:
    return torch.cat([value, value]) if isinstance(value, Tensor) and value.dim() else value


def with_another_first_sample(inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The inputs with sample 0 replaced, by itself reversed (tokens) or negated (numbers), or else by sample 1; masks
    and positions stay. None where all of that leaves it as it was.
    """
    for change in (lambda v: -v[0] if v.is_floating_point() else v[0].flip(0), lambda v: v[1]):
        changed, differs = dict(inputs), False
        for name, value in inputs.items():
            if isinstance(value, Tensor) and value.dim() > 1 and "mask" not in name and "position" not in name:
                changed[name] = value.clone()
                changed[name][0] = change(value)
                differs = differs or not torch.equal(changed[name], value)
        if differs:
            return changed
    return None


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; modes and the random state come back."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.random.fork_rng():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
