"""What every backward pass here runs under, whoever calls it from where."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def backward_pass(backward: Callable) -> Callable:
    """``backward`` of an ``autograd.Function``, in the number formats of its forward pass: autocast, inside which a
    user may differentiate what was computed outside, is off.
    """

    @functools.wraps(backward)
    def run(ctx: Any, *gradients: Tensor) -> Any:
        if not is_autocast(gradients[0]):
            return backward(ctx, *gradients)
        with torch.autocast(gradients[0].device.type, enabled=False):
            return backward(ctx, *gradients)

    return once_differentiable(run)


def is_autocast(x: Tensor) -> bool:
    """Whether autocast chooses number formats on the device of ``x``; tensors without numbers have none that knows."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
