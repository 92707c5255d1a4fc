"""``linear_cross_entropy`` on processors: products by torch and oneDNN, the softmax between them in C++.

Only counted tokens are computed, a chunk of them at a time. Logits of bfloat16 states are float32 too: states and
weight are widened a piece at a time for the first product. It is half as fast as one in bfloat16, which would round a
logit of 20 to the nearest eighth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _cpu, reference
from .products import base_input_gradient, base_product

#: Logits that exist at a time, and columns of the head that are widened at a time.
SCRATCH_BYTES = 2**26
WIDENED_COLUMNS = 2048


def linear_cross_entropy(
    x: Tensor, w: Tensor, bias: Tensor | None, targets: Tensor, offsets: Tensor,
    ignore_index: int, mean: bool, softcap: float, gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See :func:`ffalora_kernels.head_loss.linear_cross_entropy`; other states than float32 or bfloat16 go to
    the reference.
    """
    if x.dtype not in (torch.float32, torch.bfloat16):
        return reference.linear_cross_entropy_ref(
            x, w, bias, targets, offsets, ignore_index, mean, softcap, gradient
        )  # fmt: skip
    counted = targets != ignore_index
    before = torch.cat([offsets.new_zeros(1, dtype=torch.int64), counted.cumsum(0)])[offsets.long()]
    counts = before.diff()
    segment = torch.arange(len(counts)).repeat_interleave(counts)
    weight = counts.clamp(min=1).reciprocal() if mean else torch.ones(len(counts))
    own = counted.nonzero()[:, 0]
    states, wanted, weights = x[own], targets[own], weight[segment]
    token_losses, token_right = weights.new_empty(len(own)), segment.new_empty(len(own), dtype=torch.int32)
    dx = torch.zeros_like(x if gradient else x[:0], memory_format=torch.contiguous_format)
    chunk = max(SCRATCH_BYTES // (4 * len(w)), 1)
    for first in range(0, len(own), chunk):
        rows = slice(first, first + chunk)
        found = token_losses[rows], token_right[rows]
        slopes = _slopes(
            _logits(states[rows], w, bias), wanted[rows], weights[rows], softcap, x.dtype, gradient, *found
        )
        if gradient:
            dx.index_copy_(0, own[rows], base_input_gradient(slopes, w))
        del slopes  # before the next chunk's logits take as much
    losses = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, segment, (token_losses * weights).double())
    right = torch.zeros_like(counts, dtype=torch.int32).index_add_(0, segment, token_right)
    return losses.float(), right, dx


def _slopes(
    logits: Tensor, targets: Tensor, weights: Tensor, softcap: float, dtype: torch.dtype, gradient: bool,
    losses: Tensor, right: Tensor,
) -> Tensor:  # fmt: skip
    """``weights · (softmax - one-hot)`` in ``dtype``; overwrites the logits and fills losses and right."""
    apart = gradient and dtype is not logits.dtype
    slopes = torch.empty_like(logits, dtype=dtype) if apart else logits
    rows, columns = logits.shape
    fields = _cpu.HeadLogits(
        data=logits.data_ptr(), stride=columns, rows=rows, columns=columns, targets=targets.data_ptr(),
        weights=weights.data_ptr(), softcap=softcap, losses=losses.data_ptr(), right=right.data_ptr(),
    )  # fmt: skip
    into = _cpu.Activations(slopes.data_ptr() if gradient else 0, columns, columns, apart)
    _cpu.softmax_gradient(fields, into, torch.get_num_threads())
    return slopes


def _logits(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """``x wᵀ + bias`` in float32."""
    bias = None if bias is None else bias.float()
    if x.dtype is torch.float32:
        return base_product(x, w, bias)
    logits, wide = x.new_empty(len(x), len(w), dtype=torch.float32), x.float()
    for first in range(0, len(w), WIDENED_COLUMNS):
        columns = slice(first, first + WIDENED_COLUMNS)
        logits[:, columns] = base_product(wide, w[columns].float(), None if bias is None else bias[columns])
    return logits
