"""The two base products with the adapter's share: the vendor's GEMM and a pass over its result.

The base product itself is torch's, but for float32 on AMD processors with AVX-512: there torch takes MKL, which ran at
half of oneDNN's rate (96 against 200 GFLOP/s on one core; on Zen 4, which halves such vectors, 85 against 99), so
oneDNN computes it, on the weight as it lies. With AVX2 (Zen 3) both run at 60, and MKL is a tenth faster on a weight
that is read across.
``torch.backends.mkldnn.flags(enabled=False)`` leaves it to torch.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpuinfo import is_amd
from .ops import expand_
from .segments import Segments


def adapted_product(
    x: Tensor, w: Tensor, bias: Tensor | None, h: Tensor, b: Tensor, segments: Segments, scale: float
) -> Tensor:
    """``x wᵀ + bias + scale · h b_cᵀ`` ``[M,N]``; x ``[M,K]``, w ``[N,K]``, bias ``[N]`` or None, the rest as in
    ``expand_``.
    """
    y = base_product(x, w, bias)
    expand_(y, h, b, segments, scale)
    return y


def adapted_input_gradient(dy: Tensor, w: Tensor, dh: Tensor, a: Tensor) -> Tensor:
    """``dy w + dh a`` ``[M,K]``; dy ``[M,N]``, w ``[N,K]``, dh ``[M,R]``, a ``[R,K]``."""
    return base_input_gradient(dy, w).addmm_(dh, a)


def base_product(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """``x wᵀ + bias`` ``[M,N]``, without a gradient of its own; x ``[M,K]``, w ``[N,K]``, bias ``[N]`` or None."""
    if _takes_onednn(x, w):
        bias = None if bias is None else bias.contiguous()  # it reads a bias as if it were
        return torch.ops.mkldnn._linear_pointwise(x, w, bias, "none", [], "")
    return F.linear(x, w, bias)


def base_input_gradient(dy: Tensor, w: Tensor) -> Tensor:
    """``dy w`` ``[M,K]``, without a gradient of its own; dy ``[M,N]``, w ``[N,K]``."""
    if _takes_onednn(dy, w):
        return torch.ops.mkldnn._linear_pointwise(dy, w.t(), None, "none", [], "")
    return dy @ w


def _takes_onednn(x: Tensor, w: Tensor) -> bool:
    """Whether oneDNN computes this product."""
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == torch.float32 == w.dtype
        and _mkl_is_slow()
        and torch.backends.mkldnn.enabled
        and x.is_contiguous()
        and x.numel() > 0
    )


@cache
def _mkl_is_slow() -> bool:
    """Whether float32 products go to MKL on a processor for which it does not use its fastest code."""
    onednn = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return onednn and torch.backends.mkl.is_available() and is_amd() and wide
