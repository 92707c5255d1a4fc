"""Dropout that keeps its mask as one byte an element."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def masked_dropout(x: Tensor, p: float) -> Tensor:
    """``x`` with each element zero with probability ``p``, the others over ``1 - p``; keeps one byte an element."""
    return _MaskedDropout.apply(x, p)


class _MaskedDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p):
        keep = torch.empty_like(x, dtype=torch.bool).bernoulli_(1.0 - p)
        ctx.save_for_backward(keep)
        ctx.factor = 1.0 / (1.0 - p)
        return x * keep * ctx.factor

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (keep,) = ctx.saved_tensors
        return dy * keep * ctx.factor, None
