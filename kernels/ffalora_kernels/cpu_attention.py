"""``packed_attention`` and its gradient in C++: float32 and bfloat16; other dtypes go to the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _cpu, reference_attention


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """See :func:`ffalora_kernels.attention.packed_attention`."""
    if q.dtype not in (torch.float32, torch.bfloat16):
        return reference_attention.packed_attention_ref(q, k, v, offsets, scale, causal)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    normalisers = q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
    fields = _fields(q, k, v, out, normalisers, offsets, scale, causal)
    _cpu.attention(fields, torch.get_num_threads())
    return out, normalisers


def packed_attention_gradient(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, normalisers: Tensor, offsets: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`ffalora_kernels.attention.packed_attention_gradient`."""
    if q.dtype not in (torch.float32, torch.bfloat16):
        return reference_attention.packed_attention_gradient_ref(
            dout, q, k, v, normalisers, offsets, scale, causal
        )  # fmt: skip
    normalisers = normalisers.contiguous()
    dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
    fields = _fields(q, k, v, q, normalisers, offsets, scale, causal)
    threads = torch.get_num_threads()
    _cpu.attention_gradient(fields, _heads(dout), _heads(dq), _heads(dk), _heads(dv), threads)
    return dq, dk, dv


def _heads(t: Tensor) -> _cpu.Heads:
    return _cpu.Heads(t.data_ptr(), t.stride(0), t.stride(1))


def _fields(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, normalisers: Tensor, offsets: Tensor, scale: float, causal: bool
) -> _cpu.Attention:
    return _cpu.Attention(
        q=_heads(q), k=_heads(k), v=_heads(v), out=_heads(out), normalisers=normalisers.data_ptr(), heads=q.shape[1],
        kv_heads=k.shape[1], width=q.shape[2], tokens=q.shape[0], offsets=offsets.data_ptr(),
        count=offsets.numel() - 1, scale=scale, causal=causal, half=q.dtype is torch.bfloat16,
    )  # fmt: skip
