"""``expand_``: the adapter's output added in place, one read and one write of y."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .launch import architecture, cdiv, check_device, check_dtype, padded_rank, row_units, units


@triton.jit(do_not_specialize=["y_units", "h_units", "n_units", "n_tokens", "n_tiles", "n_blocks"])
def _expand_kernel(
    y, h, b, offsets, client, y_units, h_units, n_units, b_pitch, scale, n_tokens, n_tiles, n_blocks,
    R: tl.constexpr, SEGMENTED: tl.constexpr,
    Y_UNIT: tl.constexpr, H_UNIT: tl.constexpr, N_UNIT: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """``y[m] += scale · h[m] b_cᵀ`` for one tile of tokens (of one segment, where several clients have their own b)."""
    nb = tl.program_id(0) % n_blocks
    first = (tl.program_id(0) // n_blocks) * BLOCK_T
    end = n_tokens
    if SEGMENTED:
        segment = tl.program_id(0) // n_blocks // n_tiles
        first = tl.load(offsets + segment) + (tl.program_id(0) // n_blocks % n_tiles) * BLOCK_T
        end = tl.load(offsets + segment + 1)
        if first >= end:
            return
        b += tl.load(client + segment).to(tl.int64) * b_pitch
    t_in = tl.arange(0, BLOCK_T)
    n_in = tl.arange(0, BLOCK_N)
    r = tl.arange(0, BLOCK_R)
    live = (first + t_in < end)[:, None]
    n_live = nb * BLOCK_N + n_in < n_units * N_UNIT
    row = first.to(tl.int64)
    y_pitch = y_units * Y_UNIT
    h_pitch = h_units * H_UNIT
    h_tile = tl.load(h + row * h_pitch + t_in[:, None] * h_pitch + r[None, :], mask=live & (r < R)[None, :], other=0.0)
    b += nb.to(tl.int64) * BLOCK_N * R
    b_tile = tl.load(b + n_in[:, None] * R + r[None, :], mask=n_live[:, None] & (r < R)[None, :], other=0.0)
    at = y + row * y_pitch + nb * BLOCK_N + t_in[:, None] * y_pitch + n_in[None, :]
    y_tile = tl.load(at, mask=live & n_live[None, :], other=0.0)
    out = tl.dot(h_tile, tl.trans(b_tile.to(h.dtype.element_ty)), input_precision="ieee") * scale + y_tile.to(
        tl.float32
    )
    tl.store(at, out.to(y.dtype.element_ty), mask=live & n_live[None, :])


def expand_(y: Tensor, h: Tensor, b: Tensor, offsets: Tensor, client: Tensor, scale: float, longest: int) -> None:
    """See :func:`ffalora_kernels.ops.expand_`. With one client segments play no part: rows are tiled as they come."""
    check_device("expand_", _expand_kernel, y)
    check_dtype("expand_", y)
    (m, n), r = y.shape, h.shape[1]
    config = configs.choose("expand", architecture(y.device), y.element_size(), max(r, 1))
    segmented = b.shape[0] > 1
    nb, n_tiles = cdiv(n, config.block_n), cdiv(longest if segmented else m, config.block_t)
    programs = nb * n_tiles * (client.numel() if segmented else 1)
    if programs == 0 or r == 0:
        return
    y_units, h_units, n_units = row_units("expand_", "y", y), row_units("expand_", "h", h), units(n)
    _expand_kernel[(programs,)](
        y, h, b, offsets, client, y_units[0], h_units[0], n_units[0], b.stride(0), scale, m, n_tiles, nb,
        R=r, SEGMENTED=segmented, Y_UNIT=y_units[1], H_UNIT=h_units[1], N_UNIT=n_units[1],
        BLOCK_T=config.block_t, BLOCK_N=config.block_n, BLOCK_R=padded_rank(r),
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
