"""Sums of partial results of ``backward``, in a fixed order: chunks of a segment, blocks of out-features."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import cdiv, units

#: Four numbers a thread: one 16-byte access each.
JOIN_BLOCK = 512


@triton.jit
def _join_chunks_kernel(
    parts, offsets, g, squares, g_units, scale, width, n_segments, square_pitch,
    NB: tl.constexpr, CHUNK: tl.constexpr, ACCUMULATE: tl.constexpr, SQUARES: tl.constexpr, G_UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``g_i = scale · Σ_chunks parts`` in the order of the chunks, for BLOCK numbers of one segment."""
    nb = tl.program_id(0) % NB
    segment = tl.program_id(0) // NB
    start = tl.load(offsets + segment)
    end = tl.load(offsets + segment + 1)
    at = nb * BLOCK + tl.arange(0, BLOCK)
    live = at < width
    acc = tl.zeros((BLOCK,), tl.float32)
    for chunk in range(0, tl.cdiv(end - start, CHUNK)):
        slot = (start // CHUNK + segment + chunk).to(tl.int64)
        acc += tl.load(parts + slot * width + at, mask=live, other=0.0)
    g += segment.to(tl.int64) * g_units * G_UNIT
    acc = acc * scale
    if ACCUMULATE:
        acc += tl.load(g + at, mask=live, other=0.0)
    tl.store(g + at, acc, mask=live)
    if SQUARES:
        wide = tl.where(live, acc, 0.0).to(tl.float64)
        tl.store(squares + nb.to(tl.int64) * n_segments + segment.to(tl.int64) * square_pitch, tl.sum(wide * wide))


@triton.jit
def _sum_parts_kernel(
    parts, dh, square_parts, squares, dh_units, n_segments, square_pitch,
    DH_PARTS: tl.constexpr, SQUARE_PARTS: tl.constexpr, DH_UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums the partial dh and the partial squared norms of the blocks of out-features, in the order of the blocks."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if DH_PARTS > 0:
        n_dh = tl.to_tensor(dh_units).to(tl.int64) * DH_UNIT
        total = tl.zeros((BLOCK,), tl.float32)
        for k in range(DH_PARTS):
            total += tl.load(parts + k * n_dh + at, mask=at < n_dh, other=0.0)
        tl.store(dh + at, total.to(dh.dtype.element_ty), mask=at < n_dh)
    if SQUARE_PARTS > 0:
        square = tl.zeros((BLOCK,), tl.float64)
        for k in range(SQUARE_PARTS):
            square += tl.load(square_parts + k * n_segments + at, mask=at < n_segments, other=0.0)
        tl.store(squares + at * square_pitch, square, mask=at < n_segments)


def square_targets(squares: Tensor | None, slot: int, blocks: int) -> tuple[Tensor | None, Tensor | None, int]:
    """``squares[:, slot]`` or None, where blocks write partial norms, and the row pitch of those."""
    if squares is None:
        return None, None, 1
    target = squares[:, slot]
    if blocks == 1:
        return target, target, target.stride(0)
    return target, target.new_empty((blocks, target.numel())), 1


def join_chunks(
    slots: Tensor, offsets: Tensor, g: Tensor, square_parts: Tensor | None, square_pitch: int, scale: float, chunk: int,
    accumulate: bool,
) -> None:  # fmt: skip
    """Writes each segment's ``scale · Σ chunks`` from ``slots`` into ``g [S,width]``, and norms of what it stored."""
    s, width = g.shape
    blocks = cdiv(width, JOIN_BLOCK)
    g_units, g_unit = units(g.stride(0))
    _join_chunks_kernel[(s * blocks,)](
        slots, offsets, g, square_parts, g_units, scale, width, s, square_pitch,
        NB=blocks, CHUNK=chunk, ACCUMULATE=accumulate, SQUARES=square_parts is not None, G_UNIT=g_unit,
        BLOCK=JOIN_BLOCK, num_warps=4,
    )  # fmt: skip


def sum_parts(parts: Tensor | None, dh: Tensor | None, square_parts: Tensor | None, squares: Tensor | None) -> None:
    """``dh = Σ parts`` (``parts [blocks, dh.numel()]``) and ``squares = Σ square_parts``, each where it is given."""
    n_dh = dh.numel() if dh is not None else 0
    n_squares = squares.numel() if squares is not None else 0
    blocks = cdiv(max(n_dh, n_squares), JOIN_BLOCK)
    if blocks == 0:
        return
    dh_units, dh_unit = units(n_dh)
    _sum_parts_kernel[(blocks,)](
        parts, dh, square_parts, squares, dh_units, n_squares, squares.stride(0) if squares is not None else 1,
        DH_PARTS=parts.shape[0] if parts is not None and n_dh else 0,
        SQUARE_PARTS=square_parts.shape[0] if square_parts is not None and n_squares else 0,
        DH_UNIT=dh_unit, BLOCK=JOIN_BLOCK, num_warps=4,
    )  # fmt: skip


def chunk_slots(m: int, chunk: int, s: int, width: int, like: Tensor) -> Tensor:
    """Room for the partial gradients of all chunks: at most one slot per ``chunk`` tokens and one per segment."""
    return torch.empty((m // chunk + s, width), dtype=torch.float32, device=like.device)
