"""``outer``: per-segment ``pᵀq`` into arena columns (trained heads, biases, the gradient of a trained ``a``)."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .join import JOIN_BLOCK, chunk_slots, join_chunks, nothing_to_sum, square_targets, sum_parts
from .launch import architecture, cdiv, check_device, check_dtype, row_units, units


@triton.jit
def _walk(
    acc, lo, hi, p, q, p_pitch, q_pitch, n_live, k_live, HAS_Q: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Adds ``pᵀq`` over tokens lo … hi-1 to acc [BLOCK_N, BLOCK_K]; without q, column sums of p to its first column."""
    t_in = tl.arange(0, BLOCK_T)
    k = tl.arange(0, BLOCK_K)
    p_in = t_in[:, None] * p_pitch + tl.arange(0, BLOCK_N)[None, :]
    q_in = t_in[:, None] * q_pitch + k[None, :]
    for t in range(lo, hi, BLOCK_T):
        live = (t + t_in < hi)[:, None]
        row = tl.cast(t, tl.int64)
        p_tile = tl.load(p + row * p_pitch + p_in, mask=live & n_live[None, :], other=0.0)  # [BLOCK_T, BLOCK_N]
        if HAS_Q:
            q_tile = tl.load(q + row * q_pitch + q_in, mask=live & k_live[None, :], other=0.0)  # [BLOCK_T, BLOCK_K]
        else:
            q_tile = (live & (k == 0)[None, :]).to(p.dtype.element_ty)
        acc = tl.dot(tl.trans(p_tile), q_tile, acc, input_precision="ieee")
    return acc


@triton.jit(
    do_not_specialize=[
        "p_units", "q_units", "g_units", "n_units", "k_units", "n_segments", "square_pitch", "n_chunks", "n_blocks",
        "k_blocks",
    ],
    do_not_specialize_on_alignment=["squares"],
)  # fmt: skip
def _outer_kernel(
    p, q, offsets, g, squares, parts, p_units, q_units, g_units, n_units, k_units, scale,
    n_segments, square_pitch, n_chunks, n_blocks, k_blocks,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr, HAS_Q: tl.constexpr,
    ACCUMULATE: tl.constexpr, SQUARES: tl.constexpr, P_UNIT: tl.constexpr, Q_UNIT: tl.constexpr,
    G_UNIT: tl.constexpr, N_UNIT: tl.constexpr, K_UNIT: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``g_i = scale · p_iᵀ q_i`` for one tile of one segment, or of one chunk of it (CHUNKS as in ``backward``)."""
    block = tl.program_id(0) % (n_blocks * k_blocks)
    segment = tl.program_id(0) // (n_blocks * k_blocks)
    chunk = 0
    if CHUNKS == "split":
        chunk = segment % n_chunks
        segment = segment // n_chunks
    first = tl.load(offsets + segment)
    last = tl.load(offsets + segment + 1)
    slot = (first // CHUNK + segment + chunk).to(tl.int64)
    if CHUNKS == "split":
        first = tl.minimum(first + chunk * CHUNK, last)
        last = tl.minimum(first + CHUNK, last)
        if first >= last:
            return
    n_size = n_units * N_UNIT
    k_size = k_units * K_UNIT
    n = (block // k_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = (block % k_blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
    n_live = n < n_size
    k_live = k < k_size
    tile_in = n[:, None].to(tl.int64) * k_size + k[None, :]
    tile_live = n_live[:, None] & k_live[None, :]
    p += (block // k_blocks) * BLOCK_N
    if HAS_Q:
        q += (block % k_blocks) * BLOCK_K
    p_pitch = p_units * P_UNIT
    q_pitch = q_units * Q_UNIT
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    if CHUNKS == "walk":
        for lo in range(first, last, CHUNK):
            inner = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
            acc += _walk(
                inner, lo, tl.minimum(lo + CHUNK, last), p, q, p_pitch, q_pitch, n_live, k_live,
                HAS_Q, BLOCK_T, BLOCK_N, BLOCK_K,
            )  # fmt: skip
    else:
        acc = _walk(acc, first, last, p, q, p_pitch, q_pitch, n_live, k_live, HAS_Q, BLOCK_T, BLOCK_N, BLOCK_K)
    if CHUNKS == "split":
        tl.store(parts + slot * n_size * k_size + tile_in, acc, mask=tile_live)
        return
    g += segment.to(tl.int64) * g_units * G_UNIT
    acc = acc * scale
    if ACCUMULATE:
        acc += tl.load(g + tile_in, mask=tile_live, other=0.0)
    tl.store(g + tile_in, acc, mask=tile_live)
    if SQUARES:
        wide = tl.where(tile_live, acc, 0.0).to(tl.float64)
        at = block.to(tl.int64) * n_segments + segment.to(tl.int64) * square_pitch
        tl.store(squares + at, tl.sum(wide * wide))


def outer(
    p: Tensor, q: Tensor | None, offsets: Tensor, scale: float, longest: int,
    arena: Tensor, column: int, squares: Tensor | None, slot: int, accumulate: bool,
) -> None:  # fmt: skip
    """See :func:`ffalora_kernels.ops.outer`."""
    check_device("outer", _outer_kernel, p)
    check_dtype("outer", p)
    (m, n), k, s = p.shape, 1 if q is None else q.shape[1], offsets.numel() - 1
    if s == 0 or n == 0 or k == 0:
        return nothing_to_sum(squares, slot)
    arch = architecture(p.device)
    config = configs.outer_blocks(p.element_size(), n, k)
    nb, kb = cdiv(n, config.block_n), cdiv(k, config.block_k)
    chunk = configs.OUTER_CHUNK
    n_chunks = cdiv(longest, chunk)
    chunks = configs.walk_chunks(arch, s * nb * kb, n_chunks)
    split = chunks == "split"
    g = arena[:, column : column + n * k]
    target, square_parts, square_pitch = square_targets(squares, slot, cdiv(n * k, JOIN_BLOCK) if split else nb * kb)
    slots = chunk_slots(m, chunk, s, n * k, p) if split else None
    p_units, q_units = row_units("outer", "p", p), (0, 1) if q is None else row_units("outer", "q", q)
    g_units, n_units, k_units = units(g.stride(0)), units(n), units(k)
    _outer_kernel[(s * nb * kb * (n_chunks if split else 1),)](
        p, q, offsets, g, square_parts, slots,
        p_units[0], q_units[0], g_units[0], n_units[0], k_units[0], scale, s, square_pitch, n_chunks,
        nb, kb,
        CHUNK=chunk, CHUNKS=chunks, HAS_Q=q is not None,
        ACCUMULATE=accumulate, SQUARES=squares is not None and not split,
        P_UNIT=p_units[1], Q_UNIT=q_units[1], G_UNIT=g_units[1], N_UNIT=n_units[1], K_UNIT=k_units[1],
        BLOCK_T=config.block_t, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    if slots is not None:
        join_chunks(slots, offsets, g, square_parts, square_pitch, scale, chunk, accumulate)
    if square_parts is not target:
        sum_parts(None, None, square_parts, target)
