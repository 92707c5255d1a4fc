"""How a model uses its trained layers: how often, and which rows belong to which sample. Found once, by probing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .layers import TrainedLayer
from .targets import find_head, not_compiled

#: Largest change of a layer's row that another batch's rounding makes, relative to the row: other samples differ more.
_ROUNDING = 0.1
#: Numbers of a layer's row by which it is known again.
_FEATURES = 64


def probe_uses(model: nn.Module, layers: Iterable[TrainedLayer], inputs: Mapping[str, Any] | Tensor) -> dict[str, int]:
    """Sets ``shared_use`` and ``folded`` of the layers; returns how often one forward pass uses each.

    A layer whose input leads with a multiple of the samples is folded (windows of an image, flattened tokens) only if
    changing the first sample changes nothing behind the first sample's share of its rows, and every other sample alone
    has every other share.

    Raises:
        ValueError: a layer's input leads with as many rows as there are samples by chance: every other sample alone has
            other rows than every other row (tokens before samples, tokens that are routed).
    """
    layers, given = list(layers), dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}
    samples = next((len(value) for value in given.values() if isinstance(value, Tensor) and value.dim()), 0)
    if samples == 1:  # twice: with one sample nothing can be told apart
        samples, given = 2, {name: _repeated(value) for name, value in given.items()}
    with quiet(model), torch.no_grad():
        seen = _record(model, layers, given, samples)
        thinned = _record(model, layers, _every_other(given, samples), (samples + 1) // 2) if samples else seen
        strays = {name for name in seen if samples and not _follow_samples(seen[name], thinned[name], samples)}
        if any(_leads(x, samples) for name in strays for x in seen[name]):
            again = _record(model, layers, given, samples)  # a model that draws random numbers tells nothing
            strays = {name for name in strays if _are_alike(seen[name], again[name])}
        folds = {name for name, rows in seen.items() if any(_is_multiple(x, samples) for x in rows)} - strays
        other = with_another_first_sample(given) if folds else None
        changed = {} if other is None else _record(model, layers, other, samples)
        folds = {name for name in changed if name in folds and _first_share_only(seen[name], changed[name], samples)}
    for layer in layers:
        if layer.name in strays and any(_leads(x, samples) for x in seen[layer.name]):
            raise ValueError(
                f"{layer.name}: its input leads with {samples} rows in a batch of {samples} samples, but every other "
                "sample alone does not have every other row of it: a row is not a sample (tokens come first, or are "
                "routed), so its per-sample gradients are undefined; leave the layer out (exclude_modules)"
            )
        layer.shared_use = len(seen[layer.name]) > 1
        layer.folded = layer.name in folds
    return {name: len(rows) for name, rows in seen.items()}


def _record(
    model: nn.Module, layers: list[TrainedLayer], inputs: dict[str, Any], samples: int
) -> dict[str, list[Tensor]]:
    """The inputs of every use of each layer: some numbers ``[S, at most 64]`` of those that lead with the samples, all
    of those that lead with a multiple, and empty tensors for others.
    """
    seen: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}

    def keep(rows: list[Tensor], _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x = arguments[0].detach()
        if _leads(x, samples) and x.numel():
            flat = x.flatten(1)
            rows.append(flat[:, :: -(-flat.shape[1] // _FEATURES)].float())
        else:
            rows.append(x.clone() if _is_multiple(x, samples) else x.new_empty(0))

    handles = [layer.module.register_forward_pre_hook(partial(keep, seen[layer.name])) for layer in layers]
    try:
        model(inputs[""]) if "" in inputs else model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _leads(x: Tensor, samples: int) -> bool:
    return x.dim() > 1 and x.shape[0] == samples > 0


def _is_multiple(x: Tensor, samples: int) -> bool:
    return x.dim() > 1 and x.shape[0] > samples > 0 and x.shape[0] % samples == 0


def _every_other(inputs: Mapping[str, Any], samples: int) -> dict[str, Any]:
    return {
        name: value[::2] if isinstance(value, Tensor) and value.dim() and len(value) == samples else value
        for name, value in inputs.items()
    }


def _follow_samples(whole: list[Tensor], thinned: list[Tensor], samples: int) -> bool:
    """Whether every other sample alone has every other of the samples' rows. As many rows as samples, in their order,
    that do so are one of each: neighbours among them belong to samples an odd number apart.
    """
    if whole and not thinned:
        return False
    for before, after in zip(whole, thinned, strict=False):
        if not (_leads(before, samples) or _is_multiple(before, samples)):
            continue
        share = len(before) // samples
        if len(after) != share * ((samples + 1) // 2):
            return False
        expected = before.unflatten(0, (samples, share))[::2].flatten(0, 1)
        if expected.shape == after.shape and not _are_alike([expected], [after]):
            return False
    return True


def _are_alike(before: list[Tensor], after: list[Tensor]) -> bool:
    """Whether rows are the same to rounding."""
    for first, second in zip(before, after, strict=False):
        if first.shape != second.shape:
            return False
        if first.numel():
            moved, size = (x.flatten(1).norm(dim=1) for x in ((first - second).float(), first.float()))
            if bool((moved > _ROUNDING * size.clamp_min(1e-6 * size.mean())).any()):
                return False
    return True


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
    """The inputs with sample 0 replaced, by itself reversed (tokens) or negated (numbers), or else by sample 1 (which
    alone changes inputs of one number a sample); masks and positions stay. None where all of that leaves it as it was.
    """
    for least, change in ((2, lambda v: -v[0] if v.is_floating_point() else v[0].flip(0)), (1, lambda v: v[1])):
        changed, differs = dict(inputs), False
        for name, value in inputs.items():
            is_free = isinstance(value, Tensor) and value.dim() >= least and "mask" not in name
            if is_free and "position" not in name and len(value) > 1:
                changed[name] = value.clone()
                changed[name][0] = change(value)
                differs = differs or not torch.equal(changed[name], value)
        if differs:
            return changed
    return None


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; modes and the random state come back."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.random.fork_rng():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def telling_head(model: nn.Module) -> Iterator[None]:
    """Within the block a task head that is zero has random weights: at zero all outputs are the same, whatever a model
    does with its samples. The zeros come back.
    """
    weights = [head._parameters.get("weight") for head in find_head(not_compiled(model)).values()]
    zero = [weight.data for weight in weights if weight is not None and not weight.is_meta and not weight.any()]
    source = torch.Generator().manual_seed(0)
    try:
        for weight in zero:
            weight.copy_(torch.randn(weight.shape, generator=source) / weight[0].numel() ** 0.5)
        yield
    finally:
        for weight in zero:
            weight.zero_()
