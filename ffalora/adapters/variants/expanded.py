"""Products linear in what is trained, for adapters other than LoRA: segment gradients on the same kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ffalora_kernels import Segments, backward, expand_, outer
from ffalora_kernels.backward_pass import backward_pass

from ..autograd import Sink, client_of_token, own_arena
from ..training_pass import one_segment


def expanded(h: Tensor, b: Tensor, scale: float, segments: Segments, sink: Sink | None = None) -> Tensor:
    """``scale · h b_cᵀ``: any features of the input, times what is trained.

    Args:
        h: ``[M,R]``, features that do not depend on what is trained.
        b: ``[C,N,R]``.
        segments: covers the M tokens.
        sink: where the segments' gradients go (``column_b``); None for an ordinary gradient of ``b``.
    """
    return _Expanded.apply(h, b, scale, segments, sink)


def rescaled(h: Tensor, b: Tensor, v: Tensor, scale: float, segments: Segments, sink: Sink | None = None) -> Tensor:
    """``scale · v_c ⊙ (h bᵀ)``: frozen features ``[M,N]`` with a trained factor each. Keeps ``h`` alone.

    Args:
        h: ``[M,R]``.
        b: ``[N,R]``, frozen.
        v: ``[C,N]``.
        segments, sink: as in :func:`expanded`.
    """
    return _Rescaled.apply(h, b, v, scale, segments, sink)


class _Expanded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, b, scale, segments, sink):
        y = h.new_zeros(h.shape[0], b.shape[1])
        expand_(y, h, b, segments, scale)
        ctx.save_for_backward(h, b)
        ctx.scale, ctx.segments, ctx.sink = scale, segments, sink
        return y

    @staticmethod
    @backward_pass
    def backward(ctx, dy):
        h, b = ctx.saved_tensors
        dy, db = dy.contiguous(), None
        if (sink := ctx.sink) is not None:
            dh = backward(dy, h, b, ctx.segments, ctx.scale, sink.arena, sink.column_b, **sink.at(sink.slot))
        else:
            arena = own_arena(dy, b[0].numel())
            dh = backward(dy, h, b, one_segment(len(dy), dy.device), ctx.scale, arena, 0)
            db = arena.view(b.shape).to(b.dtype)
        return dh, db, None, None, None


class _Rescaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, b, v, scale, segments, sink):
        ctx.save_for_backward(h, b, v)
        ctx.scale, ctx.segments, ctx.sink = scale, segments, sink
        return (h @ b.T.to(h.dtype)) * (scale * _of_tokens(v, segments)).to(h.dtype)

    @staticmethod
    @backward_pass
    def backward(ctx, dy):
        h, b, v = ctx.saved_tensors
        narrow, dv = b.to(h.dtype), None
        products = dy * (h @ narrow.T)
        if (sink := ctx.sink) is not None:
            outer(products, None, ctx.segments, ctx.scale, sink.arena, sink.column_b, **sink.at(sink.slot))
        else:
            arena = own_arena(dy, v.shape[1])
            outer(products, None, one_segment(len(dy), dy.device), ctx.scale, arena, 0)
            dv = arena.view(v.shape).to(v.dtype)
        dh = (dy * (ctx.scale * _of_tokens(v, ctx.segments)).to(dy.dtype)) @ narrow
        return dh, None, dv, None, None, None


def _of_tokens(v: Tensor, segments: Segments) -> Tensor:
    """The row of ``v [C,N]`` of each token's client; one row where there is one client."""
    return v if len(v) == 1 else v[client_of_token(segments)]
