"""The contract: schema, checks and fake of every operation. Backends only compute (see ``dispatch``).

Sizes: M tokens, K in-features, N out-features, R rank, S segments, C clients, P columns of arena and state, G clipping
groups. ``offsets`` and ``client`` come from :class:`~ffalora_kernels.segments.Segments`, which has checked their
values; here only shapes, dtypes and devices are checked, so that no call waits for the device. The checks run once a
layer and step and are plain comparisons; tensors are named, and messages made, only where one is refused.

Activations (``y, h, dy, p, q``) are float32, bfloat16 or float16 and share one dtype in a call; ``b`` has that dtype or
is float32. Rows may have any stride, elements of a row must be adjacent. ``arena`` and ``state`` are contiguous
float32. ``squares``, ``total``, norms, factors and every per-client quantity are float64. (float64 activations, with a
float64 arena, are accepted by the reference backend only: gradient checks need them.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .checks import (
    activation,
    check_alike,
    check_arena,
    check_flat,
    check_layer,
    check_own_rows,
    expect,
    matrix,
    on_one_device,
    refuse_devices,
    refuse_grad,
    refuse_tokens,
    signed,
)
from .registration import define
from .segments import Segments

OPTIMIZERS = ("sgd", "adamw")
CLIPPING_MODES = ("flat", "automatic")

SCHEMAS = {
    "expand_": "(Tensor(a!) y, Tensor h, Tensor b, Tensor offsets, Tensor client, float scale, SymInt longest) -> ()",
    "backward": "(Tensor dy, Tensor h, Tensor b, Tensor offsets, Tensor client, float scale, SymInt longest, "
    "Tensor(a!) arena, int column, Tensor(b!)? squares, int slot, bool accumulate, bool deterministic) -> Tensor",
    "outer": "(Tensor p, Tensor? q, Tensor offsets, float scale, SymInt longest, "
    "Tensor(a!) arena, int column, Tensor(b!)? squares, int slot, bool accumulate) -> ()",
    "clip_reduce_": "(Tensor(a!) total, Tensor arena, Tensor? squares, Tensor client, Tensor max_grad_norm, "
    "Tensor group_columns, str mode, float gamma) -> (Tensor, Tensor)",
    "privatize_step_": "(Tensor(a!) state, *, Tensor(b!)? exp_avg, Tensor(c!)? exp_avg_sq, Tensor total, "
    "Tensor? anchor, Tensor client_id, Tensor step, Tensor age, Tensor noise_std, Tensor denominator, Tensor lr, "
    "Tensor? index, int key, int stream, str optimizer, float beta1, float beta2, float eps, float weight_decay, "
    "float mu, bool dp_bias_correction) -> ()",
}


def expand_(y: Tensor, h: Tensor, b: Tensor, segments: Segments, scale: float) -> None:
    """Adds the adapter's output in place: ``y[m] += scale · h[m] b_cᵀ``, c the client of m's segment.

    Args:
        y: ``[M,N]``, changed in place.
        h: ``[M,R]``, ``x aᵀ``.
        b: ``[C,N,R]``, one matrix a client.
        segments: covers the M tokens.
        scale: ``alpha/R`` or ``alpha/√R``.
    """
    check_layer("expand_", "y", y, h, b, segments)
    check_own_rows("y", y)
    _expand(y, h, b, segments.offsets, segments.client, scale, segments.longest)


def backward(
    dy: Tensor,
    h: Tensor,
    b: Tensor,
    segments: Segments,
    scale: float,
    arena: Tensor,
    column: int,
    squares: Tensor | None = None,
    slot: int = 0,
    accumulate: bool = False,
    deterministic: bool = True,
) -> Tensor:
    """From one read of ``dy``: ``dh = scale · dy b_c`` (returned) and ``g_i = scale · dy_iᵀ h_i`` into the arena.

    Args:
        dy: ``[M,N]``, gradient of the layer's output.
        h: ``[M,R]``, as in the forward pass.
        b: ``[C,N,R]``.
        segments: covers the M tokens.
        scale: as in the forward pass.
        arena: ``[S,P]``; row i receives ``g_i`` (``[N,R]``, row-major) in columns ``column … column+N·R-1``.
        column: first column.
        squares: float64 ``[S, slots]`` or None; ``squares[i, slot]`` receives ``‖g_i‖²`` of the numbers as stored.
        slot: column of ``squares``.
        accumulate: add to what the arena holds (an adapter used several times) instead of overwriting it.
        deterministic: no float atomics; equal inputs give equal bits.

    Returns:
        ``dh [M,R]`` in the dtype of ``h``.
    """
    width = check_layer("backward", "dy", dy, h, b, segments)
    check_arena(arena, column, width, squares, slot, segments, like=dy)
    return _backward(
        dy, h, b, segments.offsets, segments.client, scale, segments.longest,
        arena, column, squares, slot, accumulate, deterministic,
    )  # fmt: skip


def outer(
    p: Tensor,
    q: Tensor | None,
    segments: Segments,
    scale: float,
    arena: Tensor,
    column: int,
    squares: Tensor | None = None,
    slot: int = 0,
    accumulate: bool = False,
) -> None:
    """Per segment ``scale · p_iᵀ q_i`` into arena columns (trained heads; the gradient of a trained ``a``).

    Args:
        p: ``[M,N]``.
        q: ``[M,K]``; the product ``[N,K]`` is stored row-major. None stores the column sums ``[N]`` (a bias).
        segments, scale, arena, column, squares, slot, accumulate: as in :func:`backward`.
    """
    if torch.is_grad_enabled() and (p.requires_grad or (q is not None and q.requires_grad)):
        refuse_grad("outer")
    tokens, width = activation("outer", "p", p)
    q_tokens = tokens
    if q is not None:
        q_tokens, k = activation("outer", "q", q)
        width *= k
        check_alike("outer", "p", p, "q", q)
    if not tokens == q_tokens == segments.n_tokens:
        refuse_tokens("outer", segments, p=p, q=q)
    if segments.offsets.device != p.device:
        refuse_devices("outer", offsets=segments.offsets, p=p, q=q)
    check_arena(arena, column, width, squares, slot, segments, like=p)
    _outer(p, q, segments.offsets, scale, segments.longest, arena, column, squares, slot, accumulate)


def clip_reduce_(
    total: Tensor,
    arena: Tensor,
    client: Tensor,
    max_grad_norm: Tensor,
    group_columns: Tensor,
    squares: Tensor | None = None,
    mode: str = "flat",
    gamma: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Clips each segment's gradient and adds it to its client's sum: ``total[c] += Σ_i factor_i · g_i``.

    A segment with a NaN or Inf contributes exactly zero; its norm is returned as it is, so callers can count it. The
    factor of a finite segment is ``min(1, C/(norm·(1+2⁻²⁰)))``: its clipped norm, in exact arithmetic, is at most C.

    Args:
        total: float64 ``[C,P]``, added to in place (once for each physical batch of a logical one).
        arena: float32 ``[S,P]``.
        client: int32 ``[S]``.
        max_grad_norm: float64 ``[C,G]``, the clipping norm C of each client and group, not negative; infinity does not
            clip (and has no 'automatic'). Triton, which would wait for them, does not check its limits: NaN clips to 0.
        group_columns: int32 ``[G+1]``; group k owns columns ``group_columns[k] … group_columns[k+1]-1``; ``[0,P]`` is
            flat clipping, several groups are per-layer clipping.
        squares: float64 ``[S,G]`` squared norms of the stored numbers, or None to compute them from the arena.
        mode: 'flat', or 'automatic' for ``C/(norm·(1+2⁻²⁰) + gamma)`` (AUTO-S; Bu et al., NeurIPS 2023).
        gamma: stability constant of automatic clipping, positive and finite.

    Returns:
        factors and norms, both float64 ``[S,G]``.
    """
    if mode not in CLIPPING_MODES:
        raise ValueError(f"mode must be one of {CLIPPING_MODES}, got {mode!r}")
    if mode == "automatic" and not 0 < gamma < math.inf:
        raise ValueError(f"gamma must be positive and finite, since a norm of 0 is divided by it, got {gamma}")
    s, p = matrix("arena", arena)
    c, g = matrix("max_grad_norm", max_grad_norm)
    expect("arena", arena, (s, p), torch.float32)
    expect("total", total, (c, p), torch.float64)
    expect("client", client, (s,), torch.int32)
    expect("group_columns", group_columns, (g + 1,), torch.int32)
    expect("max_grad_norm", max_grad_norm, (c, g), torch.float64)
    if squares is not None:
        expect("squares", squares, (s, g), torch.float64)
    check_flat("arena", arena)
    check_own_rows("total", total)
    if not on_one_device(total, arena, client, max_grad_norm, group_columns, squares):
        refuse_devices(
            "clip_reduce_", total=total, arena=arena, client=client, max_grad_norm=max_grad_norm,
            group_columns=group_columns, squares=squares,
        )  # fmt: skip
    return _clip_reduce(total, arena, squares, client, max_grad_norm, group_columns, mode, gamma)


def privatize_step_(
    state: Tensor,
    total: Tensor,
    *,
    client_id: Tensor,
    step: Tensor,
    noise_std: Tensor,
    denominator: Tensor,
    lr: Tensor,
    key: int,
    stream: int = 0,
    optimizer: str = "sgd",
    exp_avg: Tensor | None = None,
    exp_avg_sq: Tensor | None = None,
    age: Tensor | None = None,
    anchor: Tensor | None = None,
    index: Tensor | None = None,
    beta1: float = 0.0,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    mu: float = 0.0,
    dp_bias_correction: bool = False,
) -> None:
    """One pass over the state: noise, division by the expected batch, proximal term, optimiser update.

    With ``grad = (total + noise_std·z)/denominator + mu·(state - anchor)``, z the normals of
    :func:`~ffalora_kernels.reference.gaussian_ref` at (client_id, step, parameter index):

    * sgd: ``u = grad + weight_decay·state``; with ``exp_avg`` (momentum ``beta1``) ``u = exp_avg = beta1·exp_avg + u``;
      ``state -= lr·u``.
    * adamw: Loshchilov & Hutter 2019; with ``dp_bias_correction`` the noise variance ``(noise_std/denominator)²`` is
      taken off the second moment, of which at least an eighth of it remains (Tang et al., AAAI 2024).

    Args:
        state: float32 ``[C,P]``, changed in place.
        total: float64 ``[C,P]``, sums of clipped gradients.
        client_id: int64 ``[C]``, persistent ids (not row numbers): a client's noise does not depend on its row.
        step: int64 ``[C]``, the client's logical step over its whole life.
        noise_std: float64 ``[C]``, standard deviation of the noise on ``total`` (0: none). Where it is negative, noise
            of that deviation is in ``total`` already and none is added: only ``dp_bias_correction`` uses its size.
        denominator: float64 ``[C]``, the expected (never the realised) batch size when private.
        lr: float64 ``[C]``.
        key: the 64-bit noise key.
        stream: tag that separates independent uses of one key.
        optimizer: 'sgd' or 'adamw'.
        exp_avg, exp_avg_sq: float32 ``[C,P]`` moments; adamw needs both.
        age: int64 ``[C]``, steps since the moments were zero, this one included; adamw needs it.
        anchor: float32 ``[C,P]``, the point of the proximal term (FedProx).
        index: int32 ``[P]``, parameter index of each column, -1 for padding, which stays as it is. None: 0 … P-1.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {OPTIMIZERS}, got {optimizer!r}")
    if optimizer == "adamw" and (exp_avg is None or exp_avg_sq is None or age is None):
        raise ValueError("optimizer='adamw' needs exp_avg, exp_avg_sq and age")
    if mu and anchor is None:
        raise ValueError(f"mu={mu} needs anchor, the point that the proximal term pulls towards")
    c, p = matrix("state", state)
    expect("state", state, (c, p), torch.float32)
    check_flat("state", state)
    expect("total", total, (c, p), torch.float64)
    for name, moment in (("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq), ("anchor", anchor)):
        if moment is not None:
            expect(name, moment, (c, p), torch.float32)
            check_flat(name, moment)
    age = step if age is None else age
    for name, row in (("client_id", client_id), ("step", step), ("age", age)):
        expect(name, row, (c,), torch.int64)
    for name, row in (("noise_std", noise_std), ("denominator", denominator), ("lr", lr)):
        expect(name, row, (c,), torch.float64)
    if index is not None:
        expect("index", index, (p,), torch.int32)
    moments, rows = (anchor, exp_avg, exp_avg_sq, index), (client_id, step, age, noise_std, denominator, lr)
    if not on_one_device(state, total, *rows, *moments):
        refuse_devices(
            "privatize_step_", state=state, total=total, client_id=client_id, step=step, age=age, noise_std=noise_std,
            denominator=denominator, lr=lr, anchor=anchor, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq, index=index,
        )  # fmt: skip
    _privatize_step(
        state, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq, total=total, anchor=anchor, client_id=client_id, step=step,
        age=age, noise_std=noise_std, denominator=denominator, lr=lr, index=index, key=signed(key), stream=stream,
        optimizer=optimizer, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, mu=mu,
        dp_bias_correction=dp_bias_correction,
    )  # fmt: skip


# ---- registration


def _fake_backward(dy, h, *rest):
    return torch.empty_like(h, memory_format=torch.contiguous_format)


def _fake_clip_reduce(total, arena, squares, client, max_grad_norm, *rest):
    shape = (arena.shape[0], max_grad_norm.shape[1])
    return total.new_empty(shape), total.new_empty(shape)


_FAKES = {"backward": _fake_backward, "clip_reduce_": _fake_clip_reduce}

_expand, _backward, _outer, _clip_reduce, _privatize_step = (
    define(op, schema, _FAKES.get(op, lambda *args, **fields: None)) for op, schema in SCHEMAS.items()
)
