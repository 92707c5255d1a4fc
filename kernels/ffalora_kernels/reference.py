"""The executable specification: every operation in a few lines of plain torch, one segment at a time.

These functions define what the Triton and C++ kernels must compute, and they answer wherever neither is available.
Arithmetic is in float32 (float64 for float64 input); squares, factors and sums over segments are in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from . import reference_attention
from .checks import check_limits

#: A clip factor is C/(norm·(1+2⁻²⁰)): the margin covers the rounding of the factor and of the clipped row.
NORM_MARGIN = 1.0 + 2.0**-20
#: DP-AdamBC: what remains of the second moment is at least this share of the noise variance that is taken off it.
DP_FLOOR = 0.125
_PHILOX_M0, _PHILOX_M1 = 0xD2511F53, 0xCD9E8D57
_PHILOX_W0, _PHILOX_W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


def _wide(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()


def expand_ref(y: Tensor, h: Tensor, b: Tensor, offsets: Tensor, client: Tensor, scale: float, longest: int) -> None:
    """``y[m] += scale · h[m] b_cᵀ`` for every token m of every segment of client c."""
    bounds = offsets.tolist()
    for i, c in enumerate(client.tolist()):
        rows = slice(bounds[i], bounds[i + 1])
        y[rows] = (_wide(y[rows]) + scale * (_wide(h[rows]) @ _wide(b[c]).T)).to(y.dtype)


def backward_ref(
    dy: Tensor, h: Tensor, b: Tensor, offsets: Tensor, client: Tensor, scale: float, longest: int,
    arena: Tensor, column: int, squares: Tensor | None, slot: int, accumulate: bool, deterministic: bool,
) -> Tensor:  # fmt: skip
    """``dh = scale · dy b_c`` and, per segment, ``g_i = scale · dy_iᵀ h_i`` into the arena. Returns ``dh [M,R]``."""
    dh = torch.zeros_like(h)
    bounds = offsets.tolist()
    for i, c in enumerate(client.tolist()):
        rows = slice(bounds[i], bounds[i + 1])
        dh[rows] = (scale * (_wide(dy[rows]) @ _wide(b[c]))).to(h.dtype)
    outer_ref(dy, h, offsets, scale, longest, arena, column, squares, slot, accumulate)
    return dh


def outer_ref(
    p: Tensor, q: Tensor | None, offsets: Tensor, scale: float, longest: int,
    arena: Tensor, column: int, squares: Tensor | None, slot: int, accumulate: bool,
) -> None:  # fmt: skip
    """Per segment ``scale · p_iᵀ q_i`` (``scale · Σ p_i`` where q is None) into arena columns; its squared norm too."""
    bounds = offsets.tolist()
    width = p.shape[1] * (1 if q is None else q.shape[1])
    for i in range(len(bounds) - 1):
        rows = slice(bounds[i], bounds[i + 1])
        g = _wide(p[rows]).sum(0) if q is None else (_wide(p[rows]).T @ _wide(q[rows])).reshape(-1)
        target = arena[i, column : column + width]
        target.copy_(scale * g + target if accumulate else scale * g)
        if squares is not None:
            squares[i, slot] = target.double().square().sum()


def clip_reduce_ref(
    total: Tensor, arena: Tensor, squares: Tensor | None, client: Tensor,
    max_grad_norm: Tensor, group_columns: Tensor, mode: str, gamma: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Adds ``Σ_i factor_i g_i`` to each client's row of ``total``; returns factors and norms, float64 ``[S,G]``."""
    check_limits(max_grad_norm, mode)
    bounds = group_columns.tolist()
    if squares is None:
        squares = torch.stack([arena[:, lo:hi].double().square().sum(1) for lo, hi in pairwise(bounds)], dim=1)
    norms = squares.double().sqrt()
    limit = max_grad_norm[client.long()]
    if mode == "automatic":
        factors = limit / (norms * NORM_MARGIN + gamma)
    else:
        factors = torch.where(norms * NORM_MARGIN > limit, limit / (norms * NORM_MARGIN), 1.0)
    factors = torch.where(norms.isfinite().all(1, keepdim=True), factors, 0.0)
    for i, c in enumerate(client.tolist()):
        for k, (lo, hi) in enumerate(pairwise(bounds)):
            if factors[i, k] > 0:
                total[c, lo:hi] += factors[i, k] * arena[i, lo:hi].double()
    return factors, norms


def linear_cross_entropy_ref(
    x: Tensor, w: Tensor, bias: Tensor | None, targets: Tensor, offsets: Tensor,
    ignore_index: int, mean: bool, softcap: float, gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Losses and right predictions of each segment, and the gradient of the losses' sum with respect to ``x``."""
    bounds = offsets.tolist()
    losses = _wide(x).new_zeros(len(bounds) - 1)
    right = torch.zeros(len(bounds) - 1, dtype=torch.int32, device=x.device)
    dx = torch.zeros_like(x if gradient else x[:0], memory_format=torch.contiguous_format)
    for i, (lo, hi) in enumerate(pairwise(bounds)):
        own = lo + (targets[lo:hi] != ignore_index).nonzero()[:, 0]
        z = _wide(x[own]) @ _wide(w).T
        z = z if bias is None else z + _wide(bias)
        z = softcap * (z / softcap).tanh() if softcap else z
        real = (targets[own] >= 0) & (targets[own] < len(w))
        z = z.where(real[:, None], math.nan)
        target = targets[own].clamp(0, len(w) - 1)[:, None]
        chosen, weight = z.gather(1, target)[:, 0], 1.0 / max(len(own), 1) if mean else 1.0
        losses[i] = weight * (z.logsumexp(1) - chosen).sum()
        right[i] = (chosen >= z.amax(1)).sum()
        if gradient:
            dz = z.softmax(1).scatter_add(1, target, -torch.ones_like(z[:, :1]))
            dz = dz * (1.0 - (z / softcap).square()) if softcap else dz
            dx[own] = (weight * (dz @ _wide(w))).to(x.dtype)
    return losses, right, dx


def philox_ref(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al., SC 2011): four 32-bit words per counter, as int64 tensors of equal shape."""
    c0, c1, c2, c3 = (torch.as_tensor(c, dtype=torch.int64) & _MASK for c in counter)
    k0, k1 = key & _MASK, (key >> 32) & _MASK
    for _ in range(10):
        p0, p1 = _multiply(_PHILOX_M0, c0), _multiply(_PHILOX_M1, c2)
        c0, c1, c2, c3 = p1[0] ^ c1 ^ k0, p1[1], p0[0] ^ c3 ^ k1, p0[1]
        k0, k1 = (k0 + _PHILOX_W0) & _MASK, (k1 + _PHILOX_W1) & _MASK
    return c0, c1, c2, c3


def _multiply(m: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the 64-bit product, kept inside int64 by splitting x into halves."""
    low = m * (x & 0xFFFF)
    high = m * (x >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def gaussian_ref(key: int, client_id: int, step: int, stream: int, index: Tensor) -> Tensor:
    """Standard normals (float64) at parameter indices ``index``: a pure function of its arguments.

    The counter words are (index // 4, client_id, step, stream) and lane ``index mod 4`` answers. Each pair of words (x,
    x') gives two normals by Box and Muller with u = float32(x | 1)·2⁻³² and u' = float32(x')·2⁻³², both exact, so that
    every backend starts from the same bits and differs only in the last places of log, sqrt, sin and cos.
    """
    words = torch.stack(philox_ref((index // 4, *(torch.full_like(index, v) for v in (client_id, step, stream))), key))
    lane = index % 4
    pair = (lane // 2) * 2
    x = words.gather(0, pair[None])[0]
    turn = words.gather(0, pair[None] + 1)[0]
    radius = ((x | 1).float().double() * 2.0**-32).log().mul(-2.0).sqrt()
    angle = turn.float().double() * (2.0**-32 * 2.0 * math.pi)
    return radius * torch.where(lane % 2 == 0, angle.cos(), angle.sin())


def privatize_step_ref(
    state: Tensor, *, exp_avg: Tensor | None, exp_avg_sq: Tensor | None, total: Tensor, anchor: Tensor | None,
    client_id: Tensor, step: Tensor, age: Tensor, noise_std: Tensor, denominator: Tensor, lr: Tensor,
    index: Tensor | None, key: int, stream: int, optimizer: str,
    beta1: float, beta2: float, eps: float, weight_decay: float, mu: float, dp_bias_correction: bool,
) -> None:  # fmt: skip
    """Noise, division by the expected batch, and one optimiser step, row by row. See ``ops.privatize_step_``."""
    columns = torch.arange(state.shape[1], device=state.device) if index is None else index.long()
    real = columns >= 0
    for c in range(state.shape[0]):
        noisy = total[c].clone()
        if noise_std[c] > 0:
            z = gaussian_ref(key, int(client_id[c]), int(step[c]), stream, columns.clamp(min=0).cpu()).to(state.device)
            noisy += noise_std[c] * z
        theta = state[c].double()
        grad = noisy / denominator[c]
        if anchor is not None:
            grad = grad + mu * (theta - anchor[c].double())
        if optimizer == "adamw" and exp_avg is not None and exp_avg_sq is not None:
            t = int(age[c])
            m = beta1 * exp_avg[c].double() + (1 - beta1) * grad
            v = beta2 * exp_avg_sq[c].double() + (1 - beta2) * grad * grad
            exp_avg[c] = torch.where(real, m, 0.0)
            exp_avg_sq[c] = torch.where(real, v, 0.0)
            v_hat = v / (1 - beta2**t)
            if dp_bias_correction:
                variance = float(noise_std[c] / denominator[c]) ** 2
                v_hat = (v_hat - variance).clamp(min=DP_FLOOR * variance)
            update = m / (1 - beta1**t) / (v_hat.sqrt() + eps) + weight_decay * theta
        else:
            update = grad + weight_decay * theta
            if exp_avg is not None:
                update = beta1 * exp_avg[c].double() + update
                exp_avg[c] = torch.where(real, update, 0.0)
        state[c] = torch.where(real, theta - lr[c] * update, theta)


IMPLEMENTATIONS: dict[str, Callable] = {
    "expand_": expand_ref,
    "backward": backward_ref,
    "outer": outer_ref,
    "clip_reduce_": clip_reduce_ref,
    "privatize_step_": privatize_step_ref,
    "linear_cross_entropy": linear_cross_entropy_ref,
    **reference_attention.IMPLEMENTATIONS,
}
