"""Sums of partial results of ``backward``, in a fixed order: chunks of a segment, blocks of out-features."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import cdiv, units

#: Four numbers a thread: one 16-byte access each.
JOIN_BLOCK = 512
#: Numbers that a program of ``sum_parts`` sums, and parts that it reads at once.
SUM_BLOCK, SUM_AT_ONCE = 128, 16
#: Partial sums of dh start at multiples of this many numbers, and dh has room for as many, whatever the batch: kernels
#: then access 16 bytes at a time and need not be compiled for every number of tokens.
PART_UNIT = 16


@triton.jit(
    do_not_specialize=["g_units", "n_segments", "square_pitch", "n_blocks"], do_not_specialize_on_alignment=["squares"]
)
def _join_chunks_kernel(
    parts, offsets, g, squares, g_units, scale, width, n_segments, square_pitch, n_blocks,
    CHUNK: tl.constexpr, ACCUMULATE: tl.constexpr, SQUARES: tl.constexpr, G_UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``g_i = scale · Σ_chunks parts`` in the order of the chunks, for BLOCK numbers of one segment."""
    nb = tl.program_id(0) % n_blocks
    segment = tl.program_id(0) // n_blocks
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


@triton.jit(
    do_not_specialize=["dh_units", "dh_parts", "n_square_parts", "n_segments", "square_pitch"],
    do_not_specialize_on_alignment=["squares"],
)
def _sum_parts_kernel(
    parts, dh, square_parts, squares, dh_units, dh_parts, n_square_parts, n_segments, square_pitch,
    DH: tl.constexpr, SQUARES: tl.constexpr, PART_UNIT: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Sums the partial dh and the partial squared norms of the blocks of out-features, AT_ONCE blocks at a time.

    There is little to read for each program and much latency in it: the loads of a step are all under way together.
    """
    first = tl.program_id(0).to(tl.int64) * BLOCK
    at = first + tl.arange(0, BLOCK)
    part = tl.arange(0, AT_ONCE)
    if DH:
        n_dh = dh_units.to(tl.int64) * PART_UNIT
        total = tl.zeros((BLOCK,), tl.float32)
        for k in range(0, dh_parts, AT_ONCE):
            live = (k + part < dh_parts)[:, None] & (at < n_dh)[None, :]
            total += tl.sum(tl.load(parts + (k + part)[:, None] * n_dh + at[None, :], mask=live, other=0.0), 0)
        tl.store(dh + at, total.to(dh.dtype.element_ty), mask=at < n_dh)
    if SQUARES:
        if first < n_segments:
            square = tl.zeros((BLOCK,), tl.float64)
            for k in range(0, n_square_parts, AT_ONCE):
                live = (k + part < n_square_parts)[:, None] & (at < n_segments)[None, :]
                where = square_parts + (k + part)[:, None] * n_segments.to(tl.int64) + at[None, :]
                square += tl.sum(tl.load(where, mask=live, other=0.0), 0)
            tl.store(squares + at * square_pitch, square, mask=at < n_segments)


def nothing_to_sum(squares: Tensor | None, slot: int) -> None:
    """The squared norms of gradients without numbers: zero."""
    if squares is not None:
        squares[:, slot].zero_()


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
        slots, offsets, g, square_parts, g_units, scale, width, s, square_pitch, blocks,
        CHUNK=chunk, ACCUMULATE=accumulate, SQUARES=square_parts is not None, G_UNIT=g_unit,
        BLOCK=JOIN_BLOCK, num_warps=4,
    )  # fmt: skip


def sum_parts(parts: Tensor | None, dh: Tensor | None, square_parts: Tensor | None, squares: Tensor | None) -> None:
    """``dh = Σ parts`` and ``squares = Σ square_parts``, each where it is given.

    Args:
        parts, dh: ``[blocks, dh.numel()]`` rounded up to PART_UNIT, as ``partial_sums`` and ``summed_rows`` make them.
        square_parts, squares: float64 ``[blocks, S]`` and ``[S]``.
    """
    dh_parts, room = parts.shape if parts is not None else (0, 0)
    n_square_parts, n_squares = square_parts.shape if square_parts is not None else (0, 0)
    blocks = cdiv(max(room, n_squares), SUM_BLOCK)
    if blocks == 0:
        return
    _sum_parts_kernel[(blocks,)](
        parts, dh, square_parts, squares, room // PART_UNIT, dh_parts, n_square_parts, n_squares,
        squares.stride(0) if squares is not None else 1,
        DH=room > 0, SQUARES=n_squares > 0, PART_UNIT=PART_UNIT, BLOCK=SUM_BLOCK,
        AT_ONCE=SUM_AT_ONCE, num_warps=4,
    )  # fmt: skip


def chunk_slots(m: int, chunk: int, s: int, width: int, like: Tensor) -> Tensor:
    """Room for the partial gradients of all chunks: at most one slot per ``chunk`` tokens and one per segment."""
    return torch.empty((m // chunk + s, width), dtype=torch.float32, device=like.device)


def partial_sums(blocks: int, size: int, zeroed: bool, like: Tensor) -> Tensor:
    """Room for ``blocks`` fp32 sums of ``size`` numbers, rounded up to PART_UNIT; zeros, or not yet written."""
    make = torch.zeros if zeroed else torch.empty
    return make((blocks, cdiv(size, PART_UNIT) * PART_UNIT), dtype=torch.float32, device=like.device)


def summed_rows(m: int, r: int, like: Tensor) -> Tensor:
    """An unwritten ``[m,r]`` of the dtype of ``like`` with room up to PART_UNIT behind it, for ``sum_parts``."""
    room = torch.empty(cdiv(m * r, PART_UNIT) * PART_UNIT, dtype=like.dtype, device=like.device)
    return room.as_strided((m, r), (r, 1))
