"""How a model uses its trained layers: how often, and which rows belong to which sample. Found once, by probing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .layers import TrainedLayer

Inputs: TypeAlias = Mapping[str, Any] | Tensor


def probe_uses(model: nn.Module, layers: Iterable[TrainedLayer], inputs: Inputs) -> dict[str, int]:
    """Sets ``shared_use`` and ``folded`` of the layers; returns how often one forward pass uses each.

    A layer whose input leads with a multiple of the samples is folded (windows of an image, flattened tokens) only if
    changing the first sample changes nothing behind the first sample's share of its rows.
    """
    layers = list(layers)
    inputs = _at_least_two(inputs)
    samples = _samples(inputs)
    with _quiet(model), torch.no_grad():
        seen = _record(model, layers, inputs, samples)
        folds = {name for name, rows in seen.items() if any(_is_multiple(x, samples) for x in rows)}
        if folds:
            changed = _record(model, layers, _with_another_first_sample(inputs), samples)
            folds = {name for name in folds if _first_share_only(seen[name], changed[name], samples)}
    for layer in layers:
        layer.shared_use = len(seen[layer.name]) > 1
        layer.folded = layer.name in folds
    return {name: len(rows) for name, rows in seen.items()}


def _record(model: nn.Module, layers: list[TrainedLayer], inputs: Inputs, samples: int) -> dict[str, list[Tensor]]:
    """The inputs of every use of each layer; those that lead with the samples are kept as empty tensors."""
    seen: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}

    def keep(rows: list[Tensor], _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x = arguments[0]
        rows.append(x.detach().clone() if _is_multiple(x, samples) else x.new_empty(0))

    handles = [layer.module.register_forward_pre_hook(partial(keep, seen[layer.name])) for layer in layers]
    try:
        model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
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


def _samples(inputs: Inputs) -> int:
    tensors = [v for v in inputs.values() if isinstance(v, Tensor)] if isinstance(inputs, Mapping) else [inputs]
    return tensors[0].shape[0] if tensors else 0


def _at_least_two(inputs: Inputs) -> Inputs:
    """A single sample twice: with one sample nothing can be told apart."""
    if _samples(inputs) != 1:
        return inputs
    if isinstance(inputs, Tensor):
        return torch.cat([inputs, inputs])
    return {k: torch.cat([v, v]) if isinstance(v, Tensor) and v.dim() else v for k, v in inputs.items()}


def _with_another_first_sample(inputs: Inputs) -> Inputs:
    """Sample 0 with its numbers negated or its tokens moved on by one; masks and positions stay."""
    if isinstance(inputs, Tensor):
        return _changed(inputs)
    kept = ("mask", "position")
    return {
        name: _changed(value) if isinstance(value, Tensor) and not any(word in name for word in kept) else value
        for name, value in inputs.items()
    }


def _changed(value: Tensor) -> Tensor:
    value = value.clone()
    value[0] = -value[0] if value.is_floating_point() else value[0].roll(1)
    return value


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
