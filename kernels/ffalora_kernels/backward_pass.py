"""What every backward pass here runs under, whoever calls it from where."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def backward_pass(backward: Callable) -> Callable:
    """``backward`` of an ``autograd.Function``, once, and in the number formats of its forward pass: autocast, inside
    which a user may differentiate what was computed outside, is off.

    Raises (when the pass is run):
        RuntimeError: a graph of the pass is asked for. Its results depend on saved tensors too, whose share of second
            derivatives would be missing without a word (torch's ``once_differentiable`` sees the gradients alone).
    """

    @functools.wraps(backward)
    def run(ctx: Any, *gradients: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph=True asks for derivatives of a backward pass that has none (adapters, packed attention "
                "and losses of a frozen head are differentiated once); use create_graph=False"
            )
        if not is_autocast(gradients[0]):
            return backward(ctx, *gradients)
        with torch.autocast(gradients[0].device.type, enabled=False):
            return backward(ctx, *gradients)

    return run


def is_autocast(x: Tensor) -> bool:
    """Whether autocast chooses number formats on the device of ``x``; tensors without numbers have none that knows."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
