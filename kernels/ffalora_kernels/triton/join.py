"""Sums of partial results of ``backward``, in a fixed order: chunks of a segment, blocks of out-features."""

import triton
import triton.language as tl

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
def _finish_kernel(
    parts, dh, square_parts, squares, dh_units, n_segments, square_pitch,
    DH_PARTS: tl.constexpr, SQUARE_PARTS: tl.constexpr, DH_UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums the partial dh and the partial squared norms of the blocks of out-features, in the order of the blocks."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if DH_PARTS > 0:
        n_dh = dh_units * DH_UNIT
        total = tl.zeros((BLOCK,), tl.float32)
        for k in range(DH_PARTS):
            total += tl.load(parts + k * n_dh + at, mask=at < n_dh, other=0.0)
        tl.store(dh + at, total.to(dh.dtype.element_ty), mask=at < n_dh)
    if SQUARE_PARTS > 0:
        square = tl.zeros((BLOCK,), tl.float64)
        for k in range(SQUARE_PARTS):
            square += tl.load(square_parts + k * n_segments + at, mask=at < n_segments, other=0.0)
        tl.store(squares + at * square_pitch, square, mask=at < n_segments)
