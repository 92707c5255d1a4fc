"""Is each sample's output and loss a function of that sample alone? Without it, per-sample clipping bounds nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class SamplesNotIndependent(ValueError):
    """The model or the loss mixes samples: changing one changes what others contribute."""


@torch.no_grad()
def check_independence(
    model: nn.Module, inputs: Mapping[str, Tensor], logits: Callable[..., Tensor], tolerance: float = 1e-3
) -> bool:
    """Changes one sample of a batch and compares the outputs of all others.

    Args:
        model: in the mode that it is trained in.
        inputs: a batch of samples, leading dimension first.
        logits: takes the model's output and returns ``[S, ...]``.
        tolerance: largest change of another sample's output, relative to the outputs' root mean square.

    Returns:
        Whether this batch could tell: it takes two samples, and one that can be changed.

    Raises:
        SamplesNotIndependent: another sample's output changed (batch normalisation, capacity-limited routing, leaky
            packing).
    """
    size = next(iter(inputs.values())).shape[0]
    if size < 2:
        return False
    changed = _with_another_first_sample(inputs)
    if changed is None:
        return False
    state = torch.get_rng_state()
    before = logits(model(**inputs)).float()
    torch.set_rng_state(state)
    after = logits(model(**changed)).float()
    torch.set_rng_state(state)
    change = (after[1:] - before[1:]).abs().max()
    limit = tolerance * before.square().mean().sqrt()
    if not bool(change <= limit):
        raise SamplesNotIndependent(
            f"changing sample 0 of a batch of {size} moved another sample's output by {float(change):.3g} (outputs "
            f"have root mean square {float(limit / tolerance):.3g}): this model mixes samples, so that per-sample "
            "clipping does not bound what one sample can do. Replace batch normalisation by layer or group normalisation, "
            "and turn off capacity-limited routing or packing"
        )
    return True


@torch.no_grad()
def check_losses_independence(
    losses: Callable[[Any, Tensor], Tensor], logits: Tensor, targets: Tensor, tolerance: float = 1e-4
) -> None:
    """Takes one sample out of a batch, and changes it, and compares the losses of all others.

    Args:
        losses: takes an output with ``logits`` and the targets, returns one loss a sample.
        logits: ``[S, ...]``; targets: ``[S, ...]``, S at least 2.
        tolerance: largest relative change of another sample's loss.

    Raises:
        SamplesNotIndependent: the loss is a mean over the batch, or compares samples with each other.
    """
    whole = losses(SimpleNamespace(logits=logits), targets)[1:].double()
    shorter = losses(SimpleNamespace(logits=logits[1:]), targets[1:]).double()
    other = logits.clone()
    other[0] = -logits[0] + 1.0
    changed = losses(SimpleNamespace(logits=other), targets)[1:].double()
    limit = tolerance * whole.abs() + 1e-6 * (1.0 + whole.abs().max())
    for what, found in (("leaving sample 0 out of", shorter), ("changing the output of sample 0 in", changed)):
        moved = (found - whole).abs()
        if bool((whole.isfinite() & found.isfinite() & (moved > limit)).any()):
            raise SamplesNotIndependent(
                f"{what} a batch of {len(targets)} moved another sample's loss by "
                f"{float(moved.nan_to_num().max()):.3g}: the loss averages over the batch or compares samples. Use "
                "reduction='none', without weights that depend on the batch"
            )


def _with_another_first_sample(inputs: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The inputs with sample 0 replaced, by itself reversed (tokens) or negated (numbers), or else by sample 1; masks
    stay. None where all of that leaves it as it was.
    """
    for change in (lambda v: -v[0] if v.is_floating_point() else v[0].flip(0), lambda v: v[1]):
        changed, differs = {}, False
        for name, value in inputs.items():
            changed[name] = value
            if "mask" not in name and "position" not in name:
                changed[name] = value.clone()
                changed[name][0] = change(value)
                differs = differs or not torch.equal(changed[name], value)
        if differs:
            return changed
    return None
