"""Products linear in what is trained, for adapters other than LoRA: segment gradients on the same kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ffalora_kernels import Segments, backward, expand_, outer

from .autograd import Sink
from .training_pass import one_segment


def expanded(h: Tensor, b: Tensor, scale: float, segments: Segments, sink: Sink | None = None) -> Tensor:
    """``scale · h b_cᵀ``: any features of the input, times what is trained.

    Args:
        h: ``[M,R]``, features that do not depend on what is trained.
        b: ``[C,N,R]``.
        segments: covers the M tokens.
        sink: where the segments' gradients go (``column_b``); None for an ordinary gradient of ``b``.
    """
    arena, squares, slot, column, accumulate = _target(sink)
    return _Expanded.apply(
        h, b, scale, segments.offsets, segments.client, segments.longest, arena, squares, slot, column, accumulate
    )


def rescaled(h: Tensor, b: Tensor, v: Tensor, scale: float, segments: Segments, sink: Sink | None = None) -> Tensor:
    """``scale · v_c ⊙ (h bᵀ)``: frozen features ``[M,N]`` with a trained factor for each. Keeps ``h``, not the
    features.

    Args:
        h: ``[M,R]``.
        b: ``[N,R]``, frozen.
        v: ``[C,N]``.
        segments, sink: as in :func:`expanded`.
    """
    arena, squares, slot, column, accumulate = _target(sink)
    return _Rescaled.apply(
        h, b, v, scale, segments.offsets, segments.client, segments.longest, arena, squares, slot, column, accumulate
    )


def _target(sink: Sink | None):
    if sink is None:
        return None, None, 0, None, False
    return sink.arena, sink.squares, sink.slot, sink.column_b, sink.accumulate


def _own_arena(dy: Tensor, size: int) -> Tensor:
    return dy.new_empty(1, size, dtype=torch.float64 if dy.dtype == torch.float64 else torch.float32)


class _Expanded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, b, scale, offsets, client, longest, arena, squares, slot, column, accumulate):
        segments = Segments(offsets, client, b.shape[0], longest, h.shape[0])
        y = h.new_zeros(h.shape[0], b.shape[1])
        expand_(y, h, b, segments, scale)
        ctx.save_for_backward(h, b)
        ctx.segments, ctx.scale, ctx.arena, ctx.squares = segments, scale, arena, squares
        ctx.slot, ctx.column, ctx.accumulate = slot, column, accumulate
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        h, b = ctx.saved_tensors
        dy, db = dy.contiguous(), None
        if ctx.arena is not None:
            dh = backward(
                dy, h, b, ctx.segments, ctx.scale, ctx.arena, ctx.column, ctx.squares, ctx.slot, ctx.accumulate
            )
        else:
            arena = _own_arena(dy, b[0].numel())
            dh = backward(dy, h, b, one_segment(len(dy), dy.device), ctx.scale, arena, 0)
            db = arena.view(b.shape).to(b.dtype)
        return dh, db, *(None,) * 9


class _Rescaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, b, v, scale, offsets, client, longest, arena, squares, slot, column, accumulate):
        segments = Segments(offsets, client, v.shape[0], longest, h.shape[0])
        ctx.save_for_backward(h, b, v)
        ctx.segments, ctx.scale, ctx.arena, ctx.squares = segments, scale, arena, squares
        ctx.slot, ctx.column, ctx.accumulate = slot, column, accumulate
        return (h @ b.T.to(h.dtype)) * (scale * _of_tokens(v, segments)).to(h.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        h, b, v = ctx.saved_tensors
        narrow, dv = b.to(h.dtype), None
        products = dy * (h @ narrow.T)
        if ctx.arena is not None:
            outer(products, None, ctx.segments, ctx.scale, ctx.arena, ctx.column, ctx.squares, ctx.slot, ctx.accumulate)
        else:
            arena = _own_arena(dy, v.shape[1])
            outer(products, None, one_segment(len(dy), dy.device), ctx.scale, arena, 0)
            dv = arena.view(v.shape).to(v.dtype)
        dh = (dy * (ctx.scale * _of_tokens(v, ctx.segments)).to(dy.dtype)) @ narrow
        return dh, None, dv, *(None,) * 9


def _of_tokens(v: Tensor, segments: Segments) -> Tensor:
    """The row of ``v [C,N]`` of each token's client; one row where there is one client."""
    if len(v) == 1:
        return v
    owners = segments.client.long().repeat_interleave(segments.offsets.diff().long(), output_size=segments.n_tokens)
    return v[owners]
