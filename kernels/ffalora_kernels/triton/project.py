"""``dh = scale · dy b`` alone: the second read of dy where that moves fewer bytes than partial sums (large ranks)."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .launch import architecture, cdiv, padded_rank, row_units, units


@triton.jit(do_not_specialize=["dy_units", "n_units", "n_tiles"])
def _project_kernel(
    dy, b, offsets, client, dh, dy_units, n_units, b_pitch, scale, n_tiles,
    R: tl.constexpr, DY_UNIT: tl.constexpr, N_UNIT: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """``dh[m] = scale · dy[m] b_c`` for BLOCK_T tokens of one segment, walking all out-features."""
    segment = tl.program_id(0) // n_tiles
    first = tl.load(offsets + segment) + (tl.program_id(0) % n_tiles) * BLOCK_T
    end = tl.load(offsets + segment + 1)
    if first >= end:
        return
    t_in = tl.arange(0, BLOCK_T)
    r = tl.arange(0, BLOCK_R)
    live = (first + t_in < end)[:, None]
    row = first.to(tl.int64)
    pitch = dy_units * DY_UNIT
    n_size = n_units * N_UNIT
    b += tl.load(client + segment).to(tl.int64) * b_pitch
    acc = tl.zeros((BLOCK_T, BLOCK_R), tl.float32)
    for lo in range(0, n_size, BLOCK_N):
        n = lo + tl.arange(0, BLOCK_N)
        dy_tile = tl.load(
            dy + row * pitch + t_in[:, None] * pitch + n[None, :], mask=live & (n < n_size)[None, :], other=0.0
        )
        b_tile = tl.load(b + n[:, None] * R + r[None, :], mask=(n < n_size)[:, None] & (r < R)[None, :], other=0.0)
        acc = tl.dot(dy_tile, b_tile.to(dy.dtype.element_ty), acc, input_precision="ieee")
    out = dh + row * R + t_in[:, None] * R + r[None, :]
    tl.store(out, (acc * scale).to(dh.dtype.element_ty), mask=live & (r < R)[None, :])


def project(dy: Tensor, b: Tensor, offsets: Tensor, client: Tensor, scale: float, longest: int, dh: Tensor) -> None:
    """Writes ``scale · dy b_c`` into ``dh [M,R]`` (contiguous); arguments as in ``ops.backward``."""
    n, r = b.shape[1:]
    dy_units, n_units = row_units("project", "dy", dy), units(n)
    aligned = dy_units[1] * dy.element_size() >= 16
    config = configs.choose("project", architecture(dy.device), dy.element_size(), r, aligned)
    n_tiles = cdiv(longest, config.block_t)
    if n_tiles == 0:
        return
    _project_kernel[(client.numel() * n_tiles,)](
        dy, b, offsets, client, dh, dy_units[0], n_units[0], b.stride(0), scale, n_tiles,
        R=r, DY_UNIT=dy_units[1], N_UNIT=n_units[1],
        BLOCK_T=config.block_t, BLOCK_N=config.block_n, BLOCK_R=padded_rank(r),
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
