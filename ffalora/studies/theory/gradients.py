"""Norms of single samples' gradients and how far they spread: what a clipping norm has to cope with.

The norms are the engine's own: each sample is a segment, and the backward pass writes its gradient to the arena and its
squared norm to ``squares``. They are computed on private data without noise, for studies only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...adapters import Adapters
from ...adapters.state import Layout
from ...training.arena import Arena
from ...training.gradients import segment_gradients
from ...training.probe import Probe

#: The quantiles that a :class:`Spread` holds.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Batch = tuple[Mapping[str, Tensor], Tensor]


@dataclass(frozen=True)
class Spread:
    """A sample of norms in a few numbers.

    Attributes:
        mean: their mean.
        variation: standard deviation over mean (coefficient of variation); 0 where the mean is.
        quantiles: at :data:`QUANTILES`.
        clipped: share above the clipping norm.
    """

    mean: float
    variation: float
    quantiles: tuple[float, ...]
    clipped: float


def sample_squares(
    model: nn.Module, adapters: Adapters, losses: Callable[[Any, Tensor], Tensor], batches: Sequence[Batch]
) -> Tensor:
    """Squared norm of every sample's gradient for each trained tensor, float64 ``[S, slots]``, at the model's own
    factors.

    Args:
        model: with adapters; adapters: their handle.
        losses: takes the model's output and targets, returns one loss a sample ``[S]``.
        batches: inputs and targets, on the model's device.

    Raises:
        GradientMissing: a trained tensor received no gradient.
    """
    arena, probe = Arena(adapters), Probe(adapters, private=False)
    found = [torch.zeros(0, adapters.layout.slots, dtype=torch.float64, device=arena.squares.device)]
    for inputs, targets in batches:
        one = segment_gradients(model, adapters, losses, inputs, targets, arena=arena, probe=probe)
        found.append(one.squares.clone())
    return torch.cat(found)


def layer_norms(layout: Layout, squares: Tensor) -> dict[str, Tensor]:
    """Norms ``[S]`` of every sample's gradient by trained tensor, and of the whole under the name 'all'.

    Args:
        layout: whose slots.
        squares: ``[S, slots]``.
    """
    return {"all": squares.sum(1).sqrt()} | {place.name: squares[:, place.slot].sqrt() for place in layout.places}


def spread(norms: Tensor, max_grad_norm: float) -> Spread:
    """Quantiles, coefficient of variation (with the sample's own mean) and the share above the clipping norm.

    Args:
        norms: ``[S]``, at least two.
        max_grad_norm: C.

    Raises:
        ValueError: fewer than two norms.
    """
    if norms.numel() < 2:
        raise ValueError(f"norms must hold at least two samples, got {norms.numel()}")
    norms = norms.double()
    mean = float(norms.mean())
    quantiles = torch.quantile(norms, torch.tensor(QUANTILES, dtype=torch.float64, device=norms.device))
    return Spread(
        mean=mean,
        variation=float(norms.std()) / mean if mean else 0.0,
        quantiles=tuple(quantiles.tolist()),
        clipped=float((norms > max_grad_norm).double().mean()),
    )
