"""Is each sample's output a function of that sample alone? Without that, per-sample clipping bounds nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


class SamplesNotIndependent(ValueError):
    """The model mixes samples: changing one changes the outputs of others."""


@torch.no_grad()
def check_independence(
    model: nn.Module, inputs: Mapping[str, Tensor], logits: Callable[..., Tensor], tolerance: float = 1e-3
) -> None:
    """Changes one sample of a batch and compares the outputs of all others.

    Args:
        model: in the mode that it is trained in.
        inputs: a batch of at least two samples, leading dimension first.
        logits: takes the model's output and returns ``[S, ...]``.
        tolerance: largest change of another sample's output, relative to the outputs' root mean square.

    Raises:
        SamplesNotIndependent: another sample's output changed (batch normalisation, capacity-limited routing, leaky
            packing).
    """
    size = next(iter(inputs.values())).shape[0]
    if size < 2:
        return
    state = torch.get_rng_state()
    before = logits(model(**inputs)).float()
    torch.set_rng_state(state)
    after = logits(model(**{name: _changed(name, value) for name, value in inputs.items()})).float()
    torch.set_rng_state(state)
    change = (after[1:] - before[1:]).abs().max()
    limit = tolerance * before.square().mean().sqrt()
    if not bool(change <= limit):
        raise SamplesNotIndependent(
            f"changing sample 0 of a batch of {size} moved another sample's output by {float(change):.3g} (outputs have "
            f"root mean square {float(limit / tolerance):.3g}): this model mixes samples, so that per-sample clipping does "
            "not bound what one sample can do. Replace batch normalisation by layer or group normalisation, and turn off "
            "capacity-limited routing or packing"
        )


def _changed(name: str, value: Tensor) -> Tensor:
    """The input with sample 0 replaced: reversed tokens, negated numbers; masks stay."""
    if "mask" in name or "position" in name:
        return value
    value = value.clone()
    value[0] = -value[0] if value.is_floating_point() else value[0].flip(0)
    return value
