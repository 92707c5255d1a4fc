"""Executable definitions of ``packed_attention`` and its gradient, in plain torch, one segment at a time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor


def packed_attention_ref(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """``softmax(scale · q kᵀ) v`` of each segment and head; and the logarithms of the sums of exponentials."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    wide = torch.float64 if q.dtype is torch.float64 else torch.float32
    normalisers = q.new_empty((q.shape[1], q.shape[0]), dtype=wide)
    for first, end in pairwise(offsets.tolist()):
        queries, keys, values = _heads(q, k, v, first, end)
        scores = _scores(queries, keys, scale, causal)
        normalisers[:, first:end] = scores.logsumexp(-1)
        out[first:end] = (scores.softmax(-1) @ values).transpose(0, 1).to(q.dtype)
    return out, normalisers


def packed_attention_gradient_ref(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, normalisers: Tensor, offsets: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v."""
    dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
    groups = k.shape[1]
    for first, end in pairwise(offsets.tolist()):
        queries, keys, values = _heads(q, k, v, first, end)
        d = _wide(dout[first:end]).transpose(0, 1)
        weights = (_scores(queries, keys, scale, causal) - normalisers[:, first:end, None]).exp()
        slopes = d @ values.transpose(1, 2)
        slopes = weights * (slopes - (weights * slopes).sum(-1, keepdim=True))
        dq[first:end] = (scale * (slopes @ keys)).transpose(0, 1).to(q.dtype)
        for own, left, right in ((dk, slopes, scale * queries), (dv, weights, d)):
            each = (left.transpose(1, 2) @ right).unflatten(0, (groups, -1)).sum(1)
            own[first:end] = each.transpose(0, 1).to(q.dtype)
    return dq, dk, dv


def _wide(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()


def _heads(q: Tensor, k: Tensor, v: Tensor, first: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """A segment's queries, and for each of their heads its keys and values: ``[H,T,D]``."""
    share = q.shape[1] // k.shape[1]
    keys, values = (_wide(t[first:end]).transpose(0, 1).repeat_interleave(share, 0) for t in (k, v))
    return _wide(q[first:end]).transpose(0, 1), keys, values


def _scores(queries: Tensor, keys: Tensor, scale: float, causal: bool) -> Tensor:
    scores = scale * (queries @ keys.transpose(1, 2))
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    return scores


IMPLEMENTATIONS: dict[str, Callable] = {
    "packed_attention": packed_attention_ref,
    "packed_attention_gradient": packed_attention_gradient_ref,
}
