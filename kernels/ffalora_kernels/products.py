"""The two base products with the adapter's share: by the vendor's GEMM and a pass over the result, or by a seeded GEMM.

A seeded GEMM starts its accumulator at the adapter's product, so that the adapter moves no ``[M,N]`` tensor at all. It
is taken on the parts that the frozen table ``triton.configs.SEEDED`` names, outside ``torch.compile``; everywhere else
the base product stays with cuBLAS or oneDNN.
"""

from __future__ import annotations

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
    y = F.linear(x, w, bias)
    expand_(y, h, b, segments, scale)
    return y


def adapted_input_gradient(dy: Tensor, w: Tensor, dh: Tensor, a: Tensor) -> Tensor:
    """``dy w + dh a`` ``[M,K]``; dy ``[M,N]``, w ``[N,K]``, dh ``[M,R]``, a ``[R,K]``."""
    seeded = _seeded_gemm(dy)
    if seeded is not None:
        return seeded.seeded_dx(dy, w, dh, a)
    return (dy @ w).addmm_(dh, a)


def _seeded_gemm(t: Tensor) -> ModuleType | None:
    """The seeded GEMM where the frozen table prefers it on the device of ``t``."""
    if t.device.type != "cuda" or torch.compiler.is_compiling() or dispatch.load("triton")[0] is None:
        return None
    from .triton import configs, gemm, launch

    return gemm if launch.architecture(t.device) in configs.SEEDED else None
