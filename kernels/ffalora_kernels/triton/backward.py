"""``backward``: dh, segment gradients and their squared norms from one read of dy. Derivation: kernels/README.md."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .join import (
    JOIN_BLOCK,
    PART_UNIT,
    chunk_slots,
    join_chunks,
    nothing_to_sum,
    partial_sums,
    square_targets,
    sum_parts,
    summed_rows,
)
from .launch import architecture, cdiv, check_device, check_dtype, row_units, units
from .project import project


@triton.jit
def _walk(
    acc, lo, hi, dy, h, b_tile, dh, dy_pitch, h_pitch, scale, n_live, R: tl.constexpr, DH: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Adds ``dyᵀ h`` over tokens lo … hi-1 to acc [BLOCK_N, BLOCK_R]; stores or adds ``scale · dy b`` on the way."""
    t_in = tl.arange(0, BLOCK_T)
    r = tl.arange(0, BLOCK_R)
    dy_in = t_in[:, None] * dy_pitch + tl.arange(0, BLOCK_N)[None, :]
    h_in = t_in[:, None] * h_pitch + r[None, :]
    dh_in = t_in[:, None] * R + r[None, :]
    for t in range(lo, hi, BLOCK_T):
        live = (t + t_in < hi)[:, None]
        row = tl.cast(t, tl.int64)
        dy_tile = tl.load(dy + row * dy_pitch + dy_in, mask=live & n_live[None, :], other=0.0)  # [BLOCK_T, BLOCK_N]
        h_tile = tl.load(h + row * h_pitch + h_in, mask=live & (r < R)[None, :], other=0.0)  # [BLOCK_T, BLOCK_R]
        acc = tl.dot(tl.trans(dy_tile), h_tile, acc, input_precision="ieee")
        if DH != "skip":
            part = tl.dot(dy_tile, b_tile, input_precision="ieee") * scale
            if DH == "atomic":
                tl.atomic_add(dh + row * R + dh_in, part, mask=live & (r < R)[None, :], sem="relaxed")
            else:
                tl.store(dh + row * R + dh_in, part.to(dh.dtype.element_ty), mask=live & (r < R)[None, :])
    return acc


@triton.jit(
    do_not_specialize=[
        "dy_units", "h_units", "g_units", "n_units", "dh_units", "n_segments", "square_pitch", "n_chunks", "n_blocks",
    ],
    do_not_specialize_on_alignment=["squares"],
)  # fmt: skip
def _backward_kernel(
    dy, h, b, offsets, client, g, dh, squares, parts,
    dy_units, h_units, g_units, n_units, b_pitch, dh_units, scale, n_segments, square_pitch, n_chunks, n_blocks,
    R: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, DH: tl.constexpr,
    ACCUMULATE: tl.constexpr, SQUARES: tl.constexpr, DY_UNIT: tl.constexpr, H_UNIT: tl.constexpr,
    G_UNIT: tl.constexpr, N_UNIT: tl.constexpr, PART_UNIT: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """``g_i = scale · dy_iᵀ h_i`` and ``dh = scale · dy b`` for one block of out-features of one segment (or chunk).

    CHUNKS: 'one' (no segment is longer than CHUNK), 'walk' (a program walks all chunks) or 'split' (a program a chunk,
    into ``parts``). All three add the same numbers in the same order.
    """
    pid = tl.program_id(0)
    nb = pid % n_blocks
    segment = pid // n_blocks
    chunk = 0
    if CHUNKS == "split":
        chunk = segment % n_chunks
        segment = segment // n_chunks
    start = tl.load(offsets + segment)
    end = tl.load(offsets + segment + 1)
    first = start
    last = end
    if CHUNKS == "split":
        first = tl.minimum(start + chunk * CHUNK, end)
        last = tl.minimum(first + CHUNK, end)
        if first >= last:
            return
    n_size = n_units * N_UNIT
    n = nb * BLOCK_N + tl.arange(0, BLOCK_N)
    n_live = n < n_size
    r = tl.arange(0, BLOCK_R)
    tile_in = n[:, None].to(tl.int64) * R + r[None, :]
    tile_live = n_live[:, None] & (r < R)[None, :]
    b_tile = tl.zeros((BLOCK_N, BLOCK_R), dy.dtype.element_ty)
    if DH != "skip":
        owner = tl.load(client + segment).to(tl.int64)
        b_tile = tl.load(b + owner * b_pitch + tile_in, mask=tile_live, other=0.0).to(dy.dtype.element_ty)
    dy += nb * BLOCK_N
    dh += nb.to(tl.int64) * dh_units * PART_UNIT
    dy_pitch = dy_units * DY_UNIT
    h_pitch = h_units * H_UNIT
    acc = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    if CHUNKS == "walk":
        for lo in range(first, last, CHUNK):
            inner = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
            acc += _walk(
                inner, lo, tl.minimum(lo + CHUNK, last), dy, h, b_tile, dh, dy_pitch, h_pitch, scale, n_live,
                R, DH, BLOCK_T, BLOCK_N, BLOCK_R,
            )  # fmt: skip
    else:
        acc = _walk(
            acc, first, last, dy, h, b_tile, dh, dy_pitch, h_pitch, scale, n_live, R, DH, BLOCK_T, BLOCK_N, BLOCK_R
        )
    if CHUNKS == "split":
        # Slots of segments cannot overlap: ceil(len/CHUNK) <= end//CHUNK - start//CHUNK + 1
        slot = (start // CHUNK + segment + chunk).to(tl.int64)
        tl.store(parts + slot * n_size * R + tile_in, acc, mask=tile_live)
        return
    g += segment.to(tl.int64) * g_units * G_UNIT
    acc = acc * scale
    if ACCUMULATE:
        acc += tl.load(g + tile_in, mask=tile_live, other=0.0)
    tl.store(g + tile_in, acc, mask=tile_live)
    if SQUARES:
        wide = tl.where(tile_live, acc, 0.0).to(tl.float64)
        tl.store(squares + nb.to(tl.int64) * n_segments + segment.to(tl.int64) * square_pitch, tl.sum(wide * wide))


def backward(
    dy: Tensor, h: Tensor, b: Tensor, offsets: Tensor, client: Tensor, scale: float, longest: int,
    arena: Tensor, column: int, squares: Tensor | None, slot: int, accumulate: bool, deterministic: bool,
) -> Tensor:  # fmt: skip
    """See :func:`ffalora_kernels.ops.backward`. Chooses how dh is summed and how long segments are walked."""
    check_device("backward", _backward_kernel, dy)
    check_dtype("backward", dy)
    (m, n), r, s = dy.shape, h.shape[1], client.numel()
    dh = summed_rows(m, r, h)
    if s == 0 or n == 0 or r == 0:
        nothing_to_sum(squares, slot)
        return dh.zero_()
    arch = architecture(dy.device)
    aligned = row_units("backward", "dy", dy)[1] * dy.element_size() >= 16
    config = configs.choose("backward", arch, dy.element_size(), r, aligned)
    nb = cdiv(n, config.block_n)
    chunk = configs.chunk_tokens(r)
    n_chunks = cdiv(longest, chunk)
    chunks = configs.walk_chunks(arch, s * nb, n_chunks)
    split = chunks == "split"
    how = dh_reduction(n, r, nb, dy.element_size(), deterministic)
    parts = None if how in ("direct", "skip") else partial_sums(nb if how == "store" else 1, m * r, how == "atomic", dy)
    g = arena[:, column : column + n * r]
    target, square_parts, square_pitch = square_targets(squares, slot, cdiv(n * r, JOIN_BLOCK) if split else nb)
    slots = chunk_slots(m, chunk, s, n * r, dy) if split else None
    dy_units, h_units = row_units("backward", "dy", dy), row_units("backward", "h", h)
    g_units, n_units = units(g.stride(0)), units(n)
    _backward_kernel[(s * nb * (n_chunks if split else 1),)](
        dy, h, b, offsets, client, g, dh if parts is None else parts, square_parts, slots,
        dy_units[0], h_units[0], g_units[0], n_units[0], b.stride(0),
        parts.stride(0) // PART_UNIT if how == "store" and parts is not None else 0, scale,
        s, square_pitch, n_chunks, nb,
        R=r, CHUNK=chunk, CHUNKS=chunks, DH="store" if how == "direct" else how,
        ACCUMULATE=accumulate, SQUARES=squares is not None and not split,
        DY_UNIT=dy_units[1], H_UNIT=h_units[1], G_UNIT=g_units[1], N_UNIT=n_units[1], PART_UNIT=PART_UNIT,
        BLOCK_T=config.block_t, BLOCK_N=config.block_n, BLOCK_R=configs.rank_columns(arch, dy.element_size(), r),
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    if slots is not None:
        join_chunks(slots, offsets, g, square_parts, square_pitch, scale, chunk, accumulate)
    joined = square_parts is target
    if parts is not None or not joined:
        sum_parts(parts, None if parts is None else dh, None if joined else square_parts, None if joined else target)
    if how == "skip":
        project(dy, b, offsets, client, scale, longest, dh)
    return dh


def dh_reduction(n: int, r: int, nb: int, itemsize: int, deterministic: bool) -> str:
    """How dh is summed over nb blocks of out-features.

    'direct' (one block), 'atomic', 'store' (fp32 partials, summed in order) or 'skip' (computed again by reading dy a
    second time, where that moves fewer bytes than writing and reading nb partials).
    """
    if nb == 1:
        return "direct"
    if not deterministic:
        return "atomic"
    return "skip" if nb * r * 8 > n * itemsize else "store"
