"""``privatize_step_``: noise, division by the expected batch and the optimiser's update in one pass over the state."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.random import philox_impl

from ..reference import DP_FLOOR
from .launch import cdiv, check_device, units

#: Two columns a thread: 16 bytes of the float64 total, 8 of the float32 rows.
STEP_BLOCK = 256


@triton.jit
def _sine_cosine(turn):
    """sin and cos of 2π·turn for float64 turn in [0,1]: exact reduction to an eighth of a turn, then their series."""
    quadrant = (turn * 4.0 + 0.5).to(tl.int32)
    x = (turn - quadrant.to(tl.float64) * 0.25) * 6.283185307179586476925
    z = x * x
    sine = z * (1.0 / 6227020800.0 - z * (1.0 / 1307674368000.0 - z * (1.0 / 355687428096000.0)))
    sine = x - x * z * (
        1.0 / 6.0 - z * (1.0 / 120.0 - z * (1.0 / 5040.0 - z * (1.0 / 362880.0 - z * (1.0 / 39916800.0 - sine))))
    )
    cosine = z * (1.0 / 479001600.0 - z * (1.0 / 87178291200.0 - z * (1.0 / 20922789888000.0)))
    cosine = 1.0 - z * (
        0.5 - z * (1.0 / 24.0 - z * (1.0 / 720.0 - z * (1.0 / 40320.0 - z * (1.0 / 3628800.0 - cosine))))
    )
    swap = quadrant % 2 == 1
    s = tl.where(swap, cosine, sine)
    c = tl.where(swap, sine, cosine)
    return tl.where(quadrant % 4 >= 2, -s, s), tl.where((quadrant + 1) % 4 >= 2, -c, c)


@triton.jit
def _philox_words(index, client_id, step, tag, key_low, key_high):
    """The four words of Philox4x32-10 at counter (index // 4, client_id, step, tag)."""
    zero = (index * 0).to(tl.uint32)
    c0 = (index // 4).to(tl.uint32)
    return philox_impl(
        c0, zero + client_id.to(tl.uint32), zero + step.to(tl.uint32), zero + tag.to(tl.uint32),
        key_low.to(tl.uint32), key_high.to(tl.uint32),
    )  # fmt: skip


@triton.jit
def _gaussian(index, client_id, step, tag, key_low, key_high):
    """Standard normals in float64 at parameter indices ``index``; see ``reference.gaussian_ref``."""
    w0, w1, w2, w3 = _philox_words(index, client_id, step, tag, key_low, key_high)
    lane = index % 4
    word = tl.where(lane < 2, w0, w2)
    turn = tl.where(lane < 2, w1, w3)
    u = (word | 1).to(tl.float32).to(tl.float64) * 2.3283064365386962890625e-10
    radius = tl.sqrt(-2.0 * tl.log(u))
    sine, cosine = _sine_cosine(turn.to(tl.float32).to(tl.float64) * 2.3283064365386962890625e-10)
    return radius * tl.where(lane % 2 == 0, cosine, sine)


@triton.jit(do_not_specialize=["key_low", "key_high", "tag", "n_blocks"])
def _privatize_step_kernel(
    state, exp_avg, exp_avg_sq, total, anchor, client_id, step, noise_std, denominator, lr, correction1, correction2,
    index, p_size, state_units, avg_units, sq_units, total_units, anchor_units, key_low, key_high, tag, n_blocks,
    ADAM: tl.constexpr, MOMENTUM: tl.constexpr, PROXIMAL: tl.constexpr, INDEXED: tl.constexpr,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, WEIGHT_DECAY: tl.constexpr, MU: tl.constexpr,
    DP_CORRECTION: tl.constexpr, DP_FLOOR: tl.constexpr, STATE_UNIT: tl.constexpr, AVG_UNIT: tl.constexpr,
    SQ_UNIT: tl.constexpr, TOTAL_UNIT: tl.constexpr, ANCHOR_UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``grad = (total + std·z)/denominator + mu·(state - anchor)``, then SGD, momentum or AdamW, all in float64."""
    owner = (tl.program_id(0) // n_blocks).to(tl.int64)
    column = (tl.program_id(0) % n_blocks) * BLOCK + tl.arange(0, BLOCK)
    live = column < p_size
    p = column
    if INDEXED:
        p = tl.load(index + column, mask=live, other=-1)
        live = p >= 0
    std = tl.load(noise_std + owner)
    expected = tl.load(denominator + owner)
    grad = tl.load(total + owner * total_units * TOTAL_UNIT + column, mask=live, other=0.0)
    if std > 0:
        who = tl.load(client_id + owner)
        when = tl.load(step + owner)
        grad += std * _gaussian(tl.maximum(p, 0), who, when, tag, key_low, key_high)
    grad = grad / expected
    at = state + owner * state_units * STATE_UNIT + column
    theta = tl.load(at, mask=live, other=0.0).to(tl.float64)
    if PROXIMAL:
        centre = tl.load(anchor + owner * anchor_units * ANCHOR_UNIT + column, mask=live, other=0.0).to(tl.float64)
        grad += MU * (theta - centre)
    in_row = column < p_size
    at_avg = exp_avg + owner * avg_units * AVG_UNIT + column if MOMENTUM or ADAM else at
    if ADAM:
        at_sq = exp_avg_sq + owner * sq_units * SQ_UNIT + column
        m = BETA1 * tl.load(at_avg, mask=live, other=0.0).to(tl.float64) + (1.0 - BETA1) * grad
        v = BETA2 * tl.load(at_sq, mask=live, other=0.0).to(tl.float64) + (1.0 - BETA2) * grad * grad
        tl.store(at_avg, tl.where(live, m, 0.0).to(tl.float32), mask=in_row)
        tl.store(at_sq, tl.where(live, v, 0.0).to(tl.float32), mask=in_row)
        v_hat = v / tl.load(correction2 + owner)
        if DP_CORRECTION:
            variance = (std / expected) * (std / expected)
            v_hat = tl.maximum(v_hat - variance, DP_FLOOR * variance)
        update = m / tl.load(correction1 + owner) / (tl.sqrt(v_hat) + EPS) + WEIGHT_DECAY * theta
    else:
        update = grad + WEIGHT_DECAY * theta
        if MOMENTUM:
            update = BETA1 * tl.load(at_avg, mask=live, other=0.0).to(tl.float64) + update
            tl.store(at_avg, tl.where(live, update, 0.0).to(tl.float32), mask=in_row)
    tl.store(at, (theta - tl.load(lr + owner) * update).to(tl.float32), mask=live)


def privatize_step_(
    state: Tensor, *, exp_avg: Tensor | None, exp_avg_sq: Tensor | None, total: Tensor, anchor: Tensor | None,
    client_id: Tensor, step: Tensor, age: Tensor, noise_std: Tensor, denominator: Tensor, lr: Tensor,
    index: Tensor | None, key: int, stream: int, optimizer: str,
    beta1: float, beta2: float, eps: float, weight_decay: float, mu: float, dp_bias_correction: bool,
) -> None:  # fmt: skip
    """See :func:`ffalora_kernels.ops.privatize_step_`. Hyper-parameters are compiled in, so that they stay float64."""
    check_device("privatize_step_", _privatize_step_kernel, state)
    if total.shape[1] > 1 and total.stride(1) != 1:
        raise ValueError(f"total must be row-major, got strides {total.stride()}; call .contiguous()")
    c, p = state.shape
    if c == 0 or p == 0:
        return
    adam = optimizer == "adamw"
    client_id, step, index = client_id.contiguous(), step.contiguous(), None if index is None else index.contiguous()
    noise_std, denominator, lr = noise_std.contiguous(), denominator.contiguous(), lr.contiguous()
    corrections = [1.0 - torch.pow(beta, age.double()) for beta in (beta1, beta2)] if adam else [None, None]
    rows = {"state": state, "avg": exp_avg, "sq": exp_avg_sq, "total": total, "anchor": anchor}
    pitches = {name: units(0 if t is None else t.stride(0)) for name, t in rows.items()}
    blocks = cdiv(p, STEP_BLOCK)
    _privatize_step_kernel[(c * blocks,)](
        state=state, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq, total=total, anchor=anchor,
        client_id=client_id, step=step, noise_std=noise_std, denominator=denominator, lr=lr,
        correction1=corrections[0], correction2=corrections[1], index=index, p_size=p,
        key_low=_signed(key), key_high=_signed(key >> 32), tag=_signed(stream), n_blocks=blocks,
        **{f"{name}_units": count for name, (count, _) in pitches.items()},
        ADAM=adam, MOMENTUM=exp_avg is not None and not adam, PROXIMAL=anchor is not None,
        INDEXED=index is not None, BETA1=beta1, BETA2=beta2, EPS=eps, WEIGHT_DECAY=weight_decay, MU=mu,
        DP_CORRECTION=dp_bias_correction, DP_FLOOR=DP_FLOOR,
        **{f"{name.upper()}_UNIT": unit for name, (_, unit) in pitches.items()},
        BLOCK=STEP_BLOCK, num_warps=4,
    )  # fmt: skip


def _signed(word: int) -> int:
    """The low 32 bits as a signed number, the one integer type that launchers derive from every key."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word
