"""The contract of ``packed_attention``: attention inside each segment, without padding and without a matrix of scores.

Sizes beside those of ``ops``: H heads of queries, G heads of keys and values (H a multiple of G), D width of a head.
Query head h uses head ``h // (H/G)`` of keys and values. On devices without a kernel the definition answers, which
walks the segments one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import ACTIVATION_DTYPES, refuse_devices, refuse_grad, refuse_tokens
from .registration import define
from .segments import Segments

SCHEMA = "(Tensor q, Tensor k, Tensor v, Tensor offsets, float scale, bool causal) -> (Tensor, Tensor)"
GRADIENT_SCHEMA = (
    "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor normalisers, Tensor offsets, float scale, bool causal) "
    "-> (Tensor, Tensor, Tensor)"
)


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """``softmax(scale · q kᵀ) v`` of each head, over the tokens of a query's own segment (causal: up to its own place).

    Scores, softmax and sums are float32 whatever the dtype of q.

    Args:
        q: ``[M,H,D]``; k, v: ``[M,G,D]``, of one dtype; the numbers of a row must be adjacent.
        segments: covers the M tokens.
        scale: of the scores.
        causal: whether a token sees none behind it.

    Returns:
        ``out [M,H,D]`` in the dtype of q, and ``normalisers [H,M]`` float32, the logarithm of each query's sum of
        exponentials, which :func:`packed_attention_gradient` takes.
    """
    _check("packed_attention", segments, q=q, k=k, v=v)
    return _attention(q, k, v, segments.offsets, scale, causal)


def packed_attention_gradient(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, normalisers: Tensor, segments: Segments, scale: float,
    causal: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k and v where ``dout [M,H,D]`` is that of ``out``; the rest as in :func:`packed_attention`.

    Returns:
        ``dq``, ``dk`` and ``dv``, in the shapes and the dtype of q, k and v.
    """
    op = "packed_attention_gradient"
    _check(op, segments, q=q, k=k, v=v, dout=dout)
    if dout.shape != q.shape or normalisers.shape != (q.shape[1], q.shape[0]):
        raise ValueError(
            f"{op}: dout must have the shape {tuple(q.shape)} of q and normalisers that of its heads and tokens, got "
            f"{tuple(dout.shape)} and {tuple(normalisers.shape)}"
        )
    return _gradient(dout, q, k, v, normalisers, segments.offsets, scale, causal)


def _check(op: str, segments: Segments, **tensors: Tensor) -> None:
    q, k, v = tensors["q"], tensors["k"], tensors["v"]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors.values()):
        refuse_grad(op)
    for name, t in tensors.items():
        if t.dim() != 3:
            raise ValueError(f"{op}: {name} must be [tokens, heads, width], got shape {tuple(t.shape)}")
        if t.dtype not in ACTIVATION_DTYPES or t.dtype is not q.dtype:
            raise TypeError(f"{op}: {name} must be a floating-point tensor of the dtype of q, {q.dtype}, got {t.dtype}")
        if t.stride(2) != 1 and t.shape[2] > 1:
            raise ValueError(f"{op}: the numbers of a row of {name} must be adjacent, got strides {t.stride()}")
        if t.shape[0] != segments.n_tokens:
            refuse_tokens(op, segments, **tensors)
    if any(t.device != segments.offsets.device for t in tensors.values()):
        refuse_devices(op, offsets=segments.offsets, **tensors)
    heads, kv_heads = q.shape[1], k.shape[1]
    if k.shape != v.shape or k.shape[2] != q.shape[2] or not kv_heads or heads % kv_heads:
        raise ValueError(
            f"{op}: k and v must share a shape, the width of q and a divisor of its {heads} heads, got "
            f"{tuple(k.shape)} and {tuple(v.shape)} beside {tuple(q.shape)}"
        )


def _fake(q, k, v, offsets, scale, causal):
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(
        (q.shape[1], q.shape[0]), dtype=torch.float64 if q.dtype is torch.float64 else torch.float32
    )


def _fake_gradient(dout, q, k, v, *rest):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))


_attention = define("packed_attention", SCHEMA, _fake)
_gradient = define("packed_attention_gradient", GRADIENT_SCHEMA, _fake_gradient)
