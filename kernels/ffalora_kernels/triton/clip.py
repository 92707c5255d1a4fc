"""``clip_reduce_``: clip factors from the norms of the stored gradients, and the clipped sum of each client."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import NORM_MARGIN
from .launch import cdiv, check_device, units

SQUARE_BLOCK = 2048
#: Columns of a group that one program squares; longer groups are shared by several programs.
SQUARE_SPAN = 8 * SQUARE_BLOCK
REDUCE_ROWS, REDUCE_COLUMNS = 8, 512


@triton.jit
def _squares_kernel(arena, group_columns, parts, pitch_units, p_units, PITCH_UNIT: tl.constexpr, P_UNIT: tl.constexpr,
                    G: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Sum of squares, in float64, of every PARTS-th block of columns of one group of one row."""
    part = tl.program_id(0) % PARTS
    group = tl.program_id(0) // PARTS % G
    row = (tl.program_id(0) // PARTS // G).to(tl.int64)
    lo = tl.load(group_columns + group)
    hi = tl.load(group_columns + group + 1)
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    for at in range(lo // BLOCK + part, tl.cdiv(hi, BLOCK), PARTS):  # blocks and masks in fours: 16-byte loads
        column = at * BLOCK + lanes
        near = (column // 4 >= lo // 4) & (column // 4 < tl.cdiv(hi, 4)) & (column < p_units * P_UNIT)
        x = tl.load(arena + row * pitch_units * PITCH_UNIT + column, mask=near, other=0.0)
        wide = tl.where((column >= lo) & (column < hi), x, 0.0).to(tl.float64)
        total += wide * wide
    tl.store(parts + (row * G + group) * PARTS + part, tl.sum(total))


@triton.jit
def _factors_kernel(squares, client, max_grad_norm, factors, norms, row_pitch, group_pitch,
                    G: tl.constexpr, PARTS: tl.constexpr, AUTOMATIC: tl.constexpr, GAMMA: tl.constexpr,
                    MARGIN: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """``min(1, C/(norm·margin))`` (or ``C/(norm·margin + gamma)``) of a row's groups; 0 for all if one is broken."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, BLOCK)
    live = group < G
    square = tl.zeros((BLOCK,), tl.float64)
    for part in range(PARTS):
        square += tl.load(squares + row * row_pitch + group * group_pitch + part, mask=live, other=0.0)
    norm = tl.sqrt(square)
    owner = tl.load(client + row).to(tl.int64)
    limit = tl.load(max_grad_norm + owner * G + group, mask=live, other=0.0)
    widened = norm * MARGIN
    if AUTOMATIC:
        factor = limit / (widened + GAMMA)
    else:
        over = ~(widened <= limit)  # a limit of NaN too, whose factor adds nothing
        factor = tl.where(over, limit / tl.where(over, widened, 1.0), 1.0)
    broken = tl.sum((~(norm < float("inf"))).to(tl.int32))
    tl.store(norms + row * G + group, norm, mask=live)
    tl.store(factors + row * G + group, tl.where(broken == 0, factor, 0.0), mask=live)


@triton.jit(do_not_specialize=["n_rows", "n_blocks"])
def _reduce_kernel(total, arena, factors, order, bounds, group_columns, pitch_units, total_units, p_units,
                   n_rows, n_blocks, G: tl.constexpr, ORDERED: tl.constexpr, PITCH_UNIT: tl.constexpr,
                   TOTAL_UNIT: tl.constexpr, P_UNIT: tl.constexpr, BLOCK_S: tl.constexpr,
                   BLOCK_P: tl.constexpr):  # fmt: skip
    """``total[c] += Σ_i factor_i g_i`` over the rows i of client c, for one block of columns. Reads the arena once."""
    owner = (tl.program_id(0) // n_blocks).to(tl.int64)
    column = (tl.program_id(0) % n_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_row = column < p_units * P_UNIT
    live = (column >= tl.load(group_columns)) & (column < tl.load(group_columns + G))
    group = tl.zeros((BLOCK_P,), tl.int32)
    for k in range(1, G):
        group += (column >= tl.load(group_columns + k)).to(tl.int32)
    first = 0
    last = n_rows
    if ORDERED:
        first = tl.load(bounds + owner).to(tl.int32)
        last = tl.load(bounds + owner + 1).to(tl.int32)
    acc = tl.zeros((BLOCK_P,), tl.float64)
    for lo in range(first, last, BLOCK_S):
        i = lo + tl.arange(0, BLOCK_S)
        row = i.to(tl.int64)
        if ORDERED:
            row = tl.load(order + i, mask=i < last, other=0)
        wanted = (i < last)[:, None]
        if G == 1:
            factor = tl.load(factors + row, mask=i < last, other=0.0)[:, None]
            wanted = factor > 0
        else:
            factor = tl.load(factors + row[:, None] * G + group[None, :], mask=wanted & live[None, :], other=0.0)
        at = arena + row[:, None] * pitch_units * PITCH_UNIT + column[None, :]
        g = tl.load(at, mask=wanted & in_row[None, :], other=0.0)  # [BLOCK_S, BLOCK_P]
        acc += tl.sum(tl.where((factor > 0) & live[None, :], factor * g.to(tl.float64), 0.0), axis=0)
    at = total + owner * total_units * TOTAL_UNIT + column
    tl.store(at, tl.load(at, mask=in_row, other=0.0) + acc, mask=in_row)


def clip_reduce_(
    total: Tensor, arena: Tensor, squares: Tensor | None, client: Tensor,
    max_grad_norm: Tensor, group_columns: Tensor, mode: str, gamma: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See :func:`ffalora_kernels.ops.clip_reduce_`. The arena is read once, or twice where ``squares`` is None."""
    check_device("clip_reduce_", _reduce_kernel, arena)
    if total.shape[1] > 1 and total.stride(1) != 1:
        raise ValueError(f"total must be row-major, got strides {total.stride()}; call .contiguous()")
    (s, p), (c, g) = arena.shape, max_grad_norm.shape
    client, max_grad_norm, group_columns = client.contiguous(), max_grad_norm.contiguous(), group_columns.contiguous()
    factors, norms = total.new_empty((s, g)), total.new_empty((s, g))
    if s == 0 or g == 0 or p == 0:
        return factors.fill_(1.0), norms.zero_()
    pitch, total_pitch, columns = units(arena.stride(0)), units(total.stride(0)), units(p)
    parts, row_pitch, group_pitch = 1, 0, 0
    if squares is None:
        parts = max(1, cdiv(p, SQUARE_SPAN * g))
        row_pitch, group_pitch = g * parts, parts
        squares = total.new_empty((s, g, parts))
        _squares_kernel[(s * g * parts,)](
            arena, group_columns, squares, pitch[0], columns[0], PITCH_UNIT=pitch[1], P_UNIT=columns[1],
            G=g, PARTS=parts, BLOCK=SQUARE_BLOCK, num_warps=4,
        )  # fmt: skip
    else:
        row_pitch, group_pitch = squares.stride(0), squares.stride(1)
    _factors_kernel[(s,)](
        squares, client, max_grad_norm, factors, norms, row_pitch, group_pitch,
        G=g, PARTS=parts, AUTOMATIC=mode == "automatic", GAMMA=gamma, MARGIN=NORM_MARGIN,
        BLOCK=triton.next_power_of_2(g), num_warps=1,
    )  # fmt: skip
    order = bounds = None
    if c > 1:
        owners, order = torch.sort(client, stable=True)
        bounds = torch.searchsorted(owners, torch.arange(c + 1, dtype=torch.int32, device=client.device))
    blocks = cdiv(p, REDUCE_COLUMNS)
    _reduce_kernel[(c * blocks,)](
        total, arena, factors, order, bounds, group_columns, pitch[0], total_pitch[0], columns[0], s, blocks,
        G=g, ORDERED=order is not None, PITCH_UNIT=pitch[1], TOTAL_UNIT=total_pitch[1],
        P_UNIT=columns[1], BLOCK_S=REDUCE_ROWS, BLOCK_P=REDUCE_COLUMNS, num_warps=4,
    )  # fmt: skip
    return factors, norms
