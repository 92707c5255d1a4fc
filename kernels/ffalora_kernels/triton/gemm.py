"""Second implementations of the adapted products, with fewer bytes than a library GEMM followed by ``expand_``.

The seeded GEMM starts its accumulator at the adapter's part, which then moves no [M,N] bytes of its own:
``seeded_linear`` is the whole forward, ``seeded_dx`` the whole input gradient. ``stacked_linear`` gets h from the base
product instead of a second read of x. ``configs.SEEDED`` names the parts on which the seeded GEMM was measured to win.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .launch import architecture, cdiv, check_device, check_dtype, padded_rank, row_units, units


@triton.jit
def _seeded_gemm_kernel(
    out, left, right, bias, u, v, offsets, client,
    out_units, left_units, right_units, u_units, n_units, k_units, v_pitch, scale, n_tokens, n_tiles,
    R: tl.constexpr, NB: tl.constexpr, ROWS_ARE_N: tl.constexpr, SEGMENTED: tl.constexpr, BIAS: tl.constexpr,
    OUT_UNIT: tl.constexpr, LEFT_UNIT: tl.constexpr, RIGHT_UNIT: tl.constexpr, U_UNIT: tl.constexpr,
    N_UNIT: tl.constexpr, K_UNIT: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """``out = scale · u v + bias + left · right``; right and v are stored by rows of n if ROWS_ARE_N."""
    nb = tl.program_id(0) % NB
    first = (tl.program_id(0) // NB) * BLOCK_T
    end = n_tokens
    if SEGMENTED:
        segment = tl.program_id(0) // NB // n_tiles
        first = tl.load(offsets + segment) + (tl.program_id(0) // NB % n_tiles) * BLOCK_T
        end = tl.load(offsets + segment + 1)
        if first >= end:
            return
        v += tl.load(client + segment).to(tl.int64) * v_pitch
    n_size = n_units * N_UNIT
    k_size = k_units * K_UNIT
    right_pitch = right_units * RIGHT_UNIT
    left_pitch = left_units * LEFT_UNIT
    t_in = tl.arange(0, BLOCK_T)
    n = nb * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.arange(0, BLOCK_R)
    k_in = tl.arange(0, BLOCK_K)
    live = (first + t_in < end)[:, None]
    n_live = n < n_size
    row = first.to(tl.int64)
    u_at = u + row * u_units * U_UNIT + t_in[:, None] * u_units * U_UNIT + r[None, :]
    u_tile = tl.load(u_at, mask=live & (r < R)[None, :], other=0.0)
    if ROWS_ARE_N:
        v_rows = tl.load(
            v + n[:, None].to(tl.int64) * R + r[None, :], mask=n_live[:, None] & (r < R)[None, :], other=0.0
        )
        v_tile = tl.trans(v_rows.to(u.dtype.element_ty))
    else:
        v_rows = tl.load(
            v + r[:, None].to(tl.int64) * n_size + n[None, :], mask=(r < R)[:, None] & n_live[None, :], other=0.0
        )
        v_tile = v_rows.to(u.dtype.element_ty)
    acc = tl.dot(u_tile, v_tile, input_precision="ieee") * scale
    if BIAS:
        acc += tl.load(bias + n, mask=n_live, other=0.0).to(tl.float32)[None, :]
    left += row * left_pitch
    for k in range(0, k_size, BLOCK_K):
        k_live = k + k_in < k_size
        left_at = left + t_in[:, None].to(tl.int64) * left_pitch + (k + k_in)[None, :]
        left_tile = tl.load(left_at, mask=live & k_live[None, :], other=0.0)
        if ROWS_ARE_N:
            right_at = right + n[:, None].to(tl.int64) * right_pitch + (k + k_in)[None, :]
            right_tile = tl.trans(tl.load(right_at, mask=n_live[:, None] & k_live[None, :], other=0.0))
        else:
            right_at = right + (k + k_in)[:, None].to(tl.int64) * right_pitch + n[None, :]
            right_tile = tl.load(right_at, mask=k_live[:, None] & n_live[None, :], other=0.0)
        acc = tl.dot(left_tile, right_tile, acc, input_precision="ieee")
    at = out + row * out_units * OUT_UNIT + t_in[:, None].to(tl.int64) * out_units * OUT_UNIT + n[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=live & n_live[None, :])


def seeded_linear(
    x: Tensor, w: Tensor, bias: Tensor | None, h: Tensor, b: Tensor, offsets: Tensor, client: Tensor, scale: float,
    longest: int,
) -> Tensor:  # fmt: skip
    """``x wᵀ + bias + scale · h b_cᵀ`` ``[M,N]`` in one kernel.

    Args:
        x, h: ``[M,K]`` and ``[M,R]``, one dtype (float32, bfloat16, float16).
        w, bias: ``[N,K]`` of the dtype of x with adjacent elements in a row; ``[N]`` or None.
        b, offsets, client, scale, longest: as in ``ops.SCHEMAS["expand_"]``.
    """
    return _launch("seeded_linear", x, w, bias, h, b, offsets, client, scale, longest, rows_are_n=True)


def seeded_dx(dy: Tensor, w: Tensor, dh: Tensor, a: Tensor) -> Tensor:
    """``dy w + dh a`` ``[M,K]`` in one kernel; w ``[N,K]``, dh ``[M,R]``, a ``[R,K]`` contiguous."""
    if not a.is_contiguous():
        raise ValueError(f"a must be contiguous, got strides {a.stride()}; call .contiguous()")
    return _launch("seeded_dx", dy, w, None, dh, a[None], None, None, 1.0, 0, rows_are_n=False)


def stack(w: Tensor, a: Tensor) -> Tensor:
    """``[w; a]`` ``[N+R',K]``, zero rows added until a row of its product is a multiple of 16 bytes."""
    (n, k), r = w.shape, a.shape[0]
    step = 16 // w.element_size()
    stacked = w.new_zeros((cdiv(n + r, step) * step, k))
    stacked[:n], stacked[n : n + r] = w, a
    return stacked


def stacked_linear(x: Tensor, stacked: Tensor, n: int, r: int) -> tuple[Tensor, Tensor]:
    """``x wᵀ`` ``[M,N]`` (a view with the pitch of the stacked product) and a copy of ``h = x aᵀ`` ``[M,R]``.

    The copy lets the product go with y: a saved view of h would keep all of it alive.
    """
    product = x @ stacked.T
    return product[:, :n], product[:, n : n + r].contiguous()


def _launch(
    op: str, left: Tensor, right: Tensor, bias: Tensor | None, u: Tensor, v: Tensor, offsets: Tensor | None,
    client: Tensor | None, scale: float, longest: int, rows_are_n: bool,
) -> Tensor:  # fmt: skip
    check_device(op, _seeded_gemm_kernel, left)
    check_dtype(op, left)
    (m, k), r = left.shape, u.shape[1]
    n, inner = right.shape if rows_are_n else right.shape[::-1]
    if inner != k or u.shape[0] != m or right.dtype != left.dtype or u.dtype != left.dtype or right.stride(1) != 1:
        raise ValueError(
            f"{op}: {tuple(left.shape)} {left.dtype}, {tuple(right.shape)} {right.dtype} of strides {right.stride()}"
            f" and {tuple(u.shape)} {u.dtype} do not fit together"
        )
    out = torch.empty((m, n), dtype=left.dtype, device=left.device)
    config = configs.gemm_blocks(architecture(left.device), left.element_size())
    segmented = client is not None and v.shape[0] > 1
    nb, n_tiles = cdiv(n, config.block_n), cdiv(longest if segmented else m, config.block_t)
    programs = nb * n_tiles * (client.numel() if segmented and client is not None else 1)
    if programs == 0:
        return out
    tensors = {"out": out, "left": left, "right": right, "u": u}
    pitches = [row_units(op, name, t) for name, t in tensors.items()] + [units(n), units(k)]
    names = ("OUT_UNIT", "LEFT_UNIT", "RIGHT_UNIT", "U_UNIT", "N_UNIT", "K_UNIT")
    _seeded_gemm_kernel[(programs,)](
        out, left, right, bias, u, v, offsets, client, *(pitch for pitch, _ in pitches), v.stride(0), scale, m, n_tiles,
        R=r, NB=nb, ROWS_ARE_N=rows_are_n, SEGMENTED=segmented, BIAS=bias is not None,
        **{name: unit for name, (_, unit) in zip(names, pitches, strict=True)},
        BLOCK_T=config.block_t, BLOCK_N=config.block_n, BLOCK_K=config.block_k, BLOCK_R=padded_rank(r),
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return out
