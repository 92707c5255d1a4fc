"""Is each sample's output and loss a function of that sample alone? Without it, per-sample clipping bounds nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.targets import not_compiled
from ..adapters.uses import with_another_first_sample
from ..data.tasks import Losses

#: Largest change of another sample's output, relative to the outputs' root mean square (half a batch may round
#: differently, and is given fifty times as much), and largest relative change of another sample's loss.
_OUTPUT_CHANGE, _LOSS_CHANGE = 1e-3, 1e-4


class SamplesNotIndependent(ValueError):
    """The model or the loss mixes samples: changing one changes what others contribute."""


@torch.no_grad()
def check_independence(model: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
    """Changes one sample of a batch, then leaves half of it out, and compares the outputs of all others.

    Models that draw random numbers (dropout) are judged by the first alone: with another batch they draw others.

    Args:
        model: in the mode that it is trained in.
        inputs: a batch of samples, leading dimension first.

    Returns:
        Whether this batch could tell: it takes two samples, one that can be changed, and outputs that follow them.

    Raises:
        SamplesNotIndependent: another sample's output changed (batch normalisation, capacity-limited routing, leaky
            packing). ValueError: no tensor of the output leads with the samples.
    """
    size = next(iter(inputs.values())).shape[0]
    if size < 2:
        return False
    changed = with_another_first_sample(inputs)
    if changed is None:
        return False
    half = size // 2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        before = numbers_of(model(**inputs), size)
        torch.manual_seed(0)
        after = numbers_of(model(**changed), size)
        again = numbers_of(model(**inputs), size)
        is_drawn = not all(torch.equal(value, again[name]) for name, value in before.items())
        fewer = {} if is_drawn else {name: value[half:] for name, value in inputs.items()}
        rest = {} if is_drawn else numbers_of(model(**fewer), size - half)
    for name, value in before.items():
        rms = value.square().mean().sqrt()
        moved = after[name][1:] - value[1:]
        _refuse_change(f"changing sample 0 of a batch of {size}", moved, rms, _OUTPUT_CHANGE)
        if name in rest:
            moved = rest[name] - value[half:]
            _refuse_change(f"leaving out half of a batch of {size}", moved, rms, 50 * _OUTPUT_CHANGE)
    return any(bool((value != value[:1]).any()) for value in before.values())


@torch.no_grad()
def check_buffers(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Passes a batch through the model and compares the model's buffers with those before.

    Args:
        model: in the mode that it is trained in; inputs: a batch of samples, leading dimension first.

    Raises:
        SamplesNotIndependent: one was changed (running statistics), and is put back: later samples' gradients would
            depend on it, and whoever gets the model would have it, both without clipping and noise.
    """
    before = {name: (value, value.clone()) for name, value in model.named_buffers() if value.is_floating_point()}
    with torch.random.fork_rng():
        not_compiled(model)(**inputs)
    after = dict(model.named_buffers())
    moved = [name for name, (_, kept) in before.items() if name not in after or not torch.equal(after[name], kept)]
    for name in moved:
        value, kept = before[name]
        path, _, own = name.rpartition(".")
        model.get_submodule(path)._buffers[own] = value.copy_(kept)
    if moved:
        raise SamplesNotIndependent(
            f"{moved[0]} is a buffer that a pass in training changes (of {len(before)}, {len(moved)} are): what it "
            "keeps of private samples is neither clipped nor noised. Put what holds it into evaluation mode, or turn "
            "its running statistics off (track_running_stats=False)"
        )


def _refuse_change(what: str, difference: Tensor, rms: Tensor, tolerance: float) -> None:
    change = difference.abs().max()
    if not bool(change <= tolerance * rms):
        raise SamplesNotIndependent(
            f"{what} moved another sample's output by {float(change):.3g} (outputs have root mean square "
            f"{float(rms):.3g}): this model mixes samples, so that per-sample clipping does not bound what one sample "
            "can do. Replace batch normalisation by layer or group normalisation, and turn off capacity-limited "
            "routing or packing"
        )


@torch.no_grad()
def check_losses_independence(losses: Losses, outputs: Any, targets: Tensor) -> None:
    """Takes one sample out of a batch, and changes it, and compares the losses of all others.

    Args:
        losses: takes the output of a model and the targets, returns one loss a sample.
        outputs: what the model says of S samples, at least 2; targets: ``[S, ...]``.

    Raises:
        ValueError: there is not one loss a sample. SamplesNotIndependent: the loss is a mean over the batch, or
            compares samples with each other.
    """
    samples = len(targets)
    whole = losses(outputs, targets)
    check_losses(whole, samples)
    whole = whole[1:].double()
    shorter = losses(_changed(outputs, samples, lambda _, value: value[1:]), targets[1:]).double()
    changed = losses(_changed(outputs, samples, _another_first), targets)[1:].double()
    limit = _LOSS_CHANGE * whole.abs() + 1e-6 * (1.0 + whole.abs().max())
    for what, found in (("leaving sample 0 out of", shorter), ("changing the output of sample 0 in", changed)):
        moved = (found - whole).abs()
        if bool((whole.isfinite() & found.isfinite() & (moved > limit)).any()):
            raise SamplesNotIndependent(
                f"{what} a batch of {samples} moved another sample's loss by "
                f"{float(moved.nan_to_num().max()):.3g}: the loss averages over the batch or compares samples. Use "
                "reduction='none', without weights that depend on the batch"
            )


def check_losses(losses: Tensor, samples: int) -> None:
    """One loss a sample: a mean over the batch would let its size, and every other sample, into each gradient."""
    if tuple(losses.shape) != (samples,):
        raise ValueError(
            f"losses returned shape {tuple(losses.shape)} for {samples} samples, but one loss a sample is needed, [S]; "
            "use reduction='none', and average over a sample's own tokens only"
        )


def _another_first(_: str, value: Tensor) -> Tensor:
    value = value.clone()
    value[0] = 1.0 - value[0]
    return value


def numbers_of(outputs: Any, samples: int) -> dict[str, Tensor]:
    """The tensors of an output that lead with its samples, float32, by their places in it."""
    found: dict[str, Tensor] = {}

    def keep(place: str, value: Tensor) -> Tensor:
        found[place] = value.float()
        return value

    _changed(outputs, samples, keep)
    if not found:
        raise ValueError(
            f"the model's output, a {type(outputs).__name__}, has no tensor of numbers that leads with the {samples} "
            "samples of the batch, so that theirs cannot be told apart; return logits [S, ...]"
        )
    return found


def _changed(outputs: Any, samples: int, change: Callable[[str, Tensor], Tensor], place: str = "") -> Any:
    """An output of a model (a tensor, or what holds some) with every tensor of numbers that leads with the samples
    changed; ``change`` takes its place in the output, and it.
    """
    if isinstance(outputs, Tensor):
        is_apart = outputs.is_floating_point() and outputs.dim() > 0 and len(outputs) == samples
        return change(place, outputs) if is_apart else outputs
    if isinstance(outputs, Mapping):
        return type(outputs)(**{name: _changed(v, samples, change, f"{place}.{name}") for name, v in outputs.items()})
    if isinstance(outputs, tuple | list):
        parts = [_changed(v, samples, change, f"{place}.{i}") for i, v in enumerate(outputs)]
        return type(outputs)(*parts) if hasattr(outputs, "_fields") else type(outputs)(parts)
    if not hasattr(outputs, "logits"):
        return outputs
    made = copy.copy(outputs)
    made.logits = _changed(outputs.logits, samples, change, f"{place}.logits")
    return made
