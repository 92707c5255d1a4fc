"""The two base products with the adapter's share: by the vendor's GEMM and a pass over the result, or by a seeded GEMM.

The base product itself is torch's, but for float32 on AMD processors: there torch takes MKL, which ran at half of
oneDNN's rate (96 against 200 GFLOP/s on one core with AVX-512), so oneDNN computes it, on the weight as it lies.
``torch.backends.mkldnn.flags(enabled=False)`` leaves it to torch.

A seeded GEMM starts its accumulator at the adapter's product, so that the adapter moves no ``[M,N]`` tensor at all. It
is taken on the parts that the frozen table ``triton.configs.SEEDED`` names, outside ``torch.compile``; everywhere else
the base product stays with cuBLAS, oneDNN or MKL.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from . import dispatch
from .ops import expand_
from .segments import Segments


def adapted_product(
    x: Tensor, w: Tensor, bias: Tensor | None, h: Tensor, b: Tensor, segments: Segments, scale: float
) -> Tensor:
    """``x wᵀ + bias + scale · h b_cᵀ`` ``[M,N]``; x ``[M,K]``, w ``[N,K]``, bias ``[N]`` or None, the rest as in
    ``expand_``.
    """
    seeded = _seeded_gemm(x)
    if seeded is not None:
        return seeded.seeded_linear(x, w, bias, h, b, segments.offsets, segments.client, scale, segments.longest)
    y = base_product(x, w, bias)
    expand_(y, h, b, segments, scale)
    return y


def adapted_input_gradient(dy: Tensor, w: Tensor, dh: Tensor, a: Tensor) -> Tensor:
    """``dy w + dh a`` ``[M,K]``; dy ``[M,N]``, w ``[N,K]``, dh ``[M,R]``, a ``[R,K]``."""
    seeded = _seeded_gemm(dy)
    if seeded is not None:
        return seeded.seeded_dx(dy, w, dh, a)
    return base_input_gradient(dy, w).addmm_(dh, a)


def base_product(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """``x wᵀ + bias`` ``[M,N]``, without a gradient of its own; x ``[M,K]``, w ``[N,K]``, bias ``[N]`` or None."""
    if _takes_onednn(x, w):
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
    processor = Path("/proc/cpuinfo")
    onednn = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return (
        onednn
        and torch.backends.mkl.is_available()
        and processor.exists()
        and "AuthenticAMD" in processor.read_text(errors="replace")
    )


def _seeded_gemm(t: Tensor) -> ModuleType | None:
    """The seeded GEMM where the frozen table prefers it on the device of ``t``."""
    if t.device.type != "cuda" or torch.compiler.is_compiling() or dispatch.load("triton")[0] is None:
        return None
    from .triton import configs, gemm, launch

    return gemm if launch.architecture(t.device) in configs.SEEDED else None
