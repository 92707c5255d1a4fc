"""The adapted linear layer as one ``torch.autograd.Function``. It shuffles tensors; the operations compute.

The forward pass saves ``h`` and never ``x`` (unless ``a`` is trained). With an arena, the backward pass writes each
segment's gradient there and returns none for the parameters; without one it returns the gradients of ``a`` and ``b``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ffalora_kernels import (
    Segments,
    adapted_input_gradient,
    adapted_product,
    backward,
    base_input_gradient,
    base_product,
    expand_,
    outer,
)
from ffalora_kernels.backward_pass import backward_pass, is_autocast

from .training_pass import one_segment


class Sink(NamedTuple):
    """Where one layer's backward pass writes its segments' gradients.

    Attributes:
        arena: float32 ``[S,P]``.
        squares: float64 ``[S, slots]``.
        slot: column of ``squares`` of the first trained tensor; a second one has the next.
        column_a, column_b: first arena column of the gradient of ``a`` ``[R,K]`` and of ``b`` ``[N,R]``; None if
            frozen.
        writes: int32 ``[slots]``, how often compiled code wrote to each slot in this pass.
        accumulate: the layer is used several times in a forward pass: add to columns that were zeroed beforehand.
        written: the slots that the pass has written to so far; None where nobody can keep them (compiled code).
        mixes: what the gradients of ``b`` (from the right) and of ``a`` (from the left) are multiplied with, float32
            ``[R,R]`` each; None leaves them as they are.
    """

    arena: Tensor
    squares: Tensor
    slot: int
    column_a: int | None
    column_b: int | None
    writes: Tensor
    accumulate: bool = False
    written: set[int] | None = None
    mixes: tuple[Tensor, Tensor] | None = None

    def at(self, slot: int) -> dict[str, Any]:
        """Where a write of an operation leaves squared norms, and whether it adds to what the arena holds: to zeros, or
        to what an earlier use has written (how often a layer is used may depend on the batch). Compiled code cannot
        see that: it counts, and who takes the pass looks (``TrainingPass.overwritten``).
        """
        again = self.written is not None and slot in self.written
        if self.written is None:
            self.writes[slot].add_(1)
        else:
            self.written.add(slot)
        return {"squares": self.squares, "slot": slot, "accumulate": self.accumulate or again}


def adapted_linear(
    x: Tensor,
    w: Tensor | None,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    segments: Segments,
    sink: Sink | None = None,
    x_adapter: Tensor | None = None,
    merged: bool = False,
) -> Tensor:
    """``x wᵀ + bias + scale · (x aᵀ) b_cᵀ``, c the client of each token's segment.

    Args:
        x: ``[..., K]``; the leading dimensions flatten to the M tokens that ``segments`` covers.
        w: ``[N,K]``, frozen; None leaves the base product out (a base layer that computes its own).
        bias: ``[N]`` or None.
        a: ``[R,K]``.
        b: ``[C,N,R]``.
        scale: ``alpha/R`` or ``alpha/√R``.
        segments: which tokens belong together, and whose ``b`` they use.
        sink: where the segments' gradients go; None for ordinary gradients of ``a`` and ``b``.
        x_adapter: the adapter's own input where it differs from ``x`` (dropout).
        merged: ``w`` already contains ``scale · b a`` (one client): the adapter's product is left out.
    """
    if (narrow := _autocast_dtype(x)) is not None:
        x, w, bias, x_adapter = (t if t is None else t.to(narrow) for t in (x, w, bias, x_adapter))
        with torch.autocast(x.device.type, enabled=False):
            return adapted_linear(x, w, bias, a, b, scale, segments, sink, x_adapter, merged)
    flat = x.reshape(-1, x.shape[-1])
    flat_adapter = None if x_adapter is None else x_adapter.reshape(-1, x.shape[-1])
    y = _AdaptedLinear.apply(flat, flat_adapter, w, bias, a, b, scale, segments, sink, merged)
    return y.view(*x.shape[:-1], b.shape[1])


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast makes of ``x``, None outside autocast; the Function runs outside it, so casts come first."""
    if x.dtype == torch.float64 or not is_autocast(x):
        return None
    return torch.get_autocast_dtype(x.device.type)


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, x_adapter, w, bias, a, b, scale, segments, sink, merged):
        source = x if x_adapter is None else x_adapter
        narrow_a = a.to(x.dtype)
        h = source @ narrow_a.T
        if w is None:
            y = x.new_zeros(x.shape[0], b.shape[1])
            expand_(y, h, b, segments, scale)
        else:
            y = base_product(x, w, bias) if merged else adapted_product(x, w, bias, h, b, segments, scale)
        trains_a = ctx.needs_input_grad[4] if sink is None else sink.column_a is not None
        ctx.save_for_backward(h, w, narrow_a, b, source if trains_a else None)
        ctx.scale, ctx.segments, ctx.sink, ctx.merged = scale, segments, sink, merged
        ctx.trains_a, ctx.separate, ctx.dtypes = trains_a, x_adapter is not None, (a.dtype, b.dtype)
        return y

    @staticmethod
    @backward_pass
    def backward(ctx, dy):
        h, w, a, b, source = ctx.saved_tensors
        needs_dx, needs_dx_adapter = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        dy = dy if dy.stride(1) == 1 else dy.contiguous()
        da = db = dx = None
        if ctx.sink is None:
            dh, da, db = _parameter_gradients(ctx, dy, h, b, source)
        else:
            dh = _segment_gradients(ctx, dy, h, b, source, needs_dh=needs_dx or needs_dx_adapter)
        adapter_dx = dh @ a if needs_dx_adapter or (needs_dx and w is None) else None
        if needs_dx and w is not None:
            plain = ctx.separate or ctx.merged
            dx = base_input_gradient(dy, w) if plain else adapted_input_gradient(dy, w, dh, a)
        elif needs_dx and not ctx.separate:
            dx = adapter_dx
        dx_adapter = adapter_dx if needs_dx_adapter else None
        dbias = dy.sum(0) if ctx.needs_input_grad[3] else None
        return dx, dx_adapter, None, dbias, da, db, None, None, None, None


def _segment_gradients(ctx, dy, h, b, source, needs_dh):
    """Writes ``g`` (and the gradient of ``a``) per segment to the arena; returns ``dh``, or None if unneeded."""
    sink, segments = ctx.sink, ctx.segments
    if sink.mixes is not None:
        h = h @ sink.mixes[0].to(h.dtype)
    needs_dh = (needs_dh and not ctx.merged) or sink.column_a is not None
    dh = None
    if sink.column_b is None:
        dh = _dh(ctx, dy, b)
    elif needs_dh:
        dh = backward(dy, h, b, segments, ctx.scale, sink.arena, sink.column_b, **sink.at(sink.slot))
    else:
        outer(dy, h, segments, ctx.scale, sink.arena, sink.column_b, **sink.at(sink.slot))
    if sink.column_a is not None:
        dv = dh if sink.mixes is None else dh @ sink.mixes[1].to(dh.dtype)  # type: ignore[union-attr]
        outer(dv, source, segments, 1.0, sink.arena, sink.column_a, **sink.at(sink.slot + (sink.column_b is not None)))
    return dh


def _parameter_gradients(ctx, dy, h, b, source):
    """``dh`` and the ordinary gradients of ``a`` and ``b``: the whole batch is one segment."""
    whole = one_segment(dy.shape[0], dy.device)
    da = db = None
    if ctx.needs_input_grad[5]:
        arena = own_arena(dy, b[0].numel())
        dh = backward(dy, h, b, whole, ctx.scale, arena, 0)
        db = arena.view(b.shape).to(ctx.dtypes[1])
    else:
        dh = _dh(ctx, dy, b)
    if ctx.trains_a:
        da = (dh.T @ source).to(ctx.dtypes[0])
    return dh, da, db


def own_arena(dy: Tensor, size: int) -> Tensor:
    """An arena of one row, for the gradient of a whole batch."""
    return dy.new_empty(1, size, dtype=torch.float64 if dy.dtype == torch.float64 else torch.float32)


def _dh(ctx, dy, b):
    """``scale · dy b`` for one client, where the gradient of ``b`` is not wanted."""
    if b.shape[0] != 1:
        raise ValueError(f"training a alone takes one client a pass, got {b.shape[0]}: a differs between clients")
    return (dy @ b[0].to(dy.dtype)) * ctx.scale


def trained_linear(x: Tensor, w: Tensor, bias: Tensor | None, segments: Segments, sink: Sink) -> Tensor:
    """``x w_cᵀ + bias_c``, every client with its own weight; segment gradients go to the sink.

    Args:
        x: ``[..., K]``.
        w: ``[C,N,K]``; bias: ``[C,N]`` or None.
        segments: which tokens use which client's weight.
        sink: ``column_a`` is the column of the weight's gradient, ``column_b`` that of the bias.
    """
    if (narrow := _autocast_dtype(x)) is not None:
        with torch.autocast(x.device.type, enabled=False):
            return trained_linear(x.to(narrow), w, bias, segments, sink)
    flat = x.reshape(-1, x.shape[-1])
    y = _TrainedLinear.apply(flat, w, bias, segments, sink)
    return y.view(*x.shape[:-1], w.shape[1])


class _TrainedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, bias, segments, sink):
        y = _per_client(x, w.transpose(1, 2), segments)
        if bias is not None:
            y += bias.to(x.dtype)[client_of_token(segments)] if len(bias) > 1 else bias[0].to(x.dtype)
        ctx.save_for_backward(x, w)
        ctx.segments, ctx.sink = segments, sink
        return y

    @staticmethod
    @backward_pass
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        dy = dy if dy.stride(1) == 1 else dy.contiguous()
        sink, segments = ctx.sink, ctx.segments
        outer(dy, x, segments, 1.0, sink.arena, sink.column_a, **sink.at(sink.slot))
        if sink.column_b is not None:
            outer(dy, None, segments, 1.0, sink.arena, sink.column_b, **sink.at(sink.slot + 1))
        dx = _per_client(dy, w, ctx.segments) if ctx.needs_input_grad[0] else None
        return dx, None, None, None, None


def _per_client(x: Tensor, w: Tensor, segments: Segments) -> Tensor:
    """``x[m] w_c`` for every token m: one product for one client, else one a segment (heads are small)."""
    w = w.to(x.dtype)
    if w.shape[0] == 1:
        return x @ w[0]
    return torch.bmm(x.unsqueeze(1), w[client_of_token(segments)]).squeeze(1)


def client_of_token(segments: Segments) -> Tensor:
    """The client of every token, int64 ``[M]``."""
    lengths = segments.offsets.diff().long()
    return segments.client.long().repeat_interleave(lengths, output_size=segments.n_tokens)
