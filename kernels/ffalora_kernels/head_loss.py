"""The contract of ``linear_cross_entropy``: losses of a language model's frozen head, without its logits.

Sizes beside those of ``ops``: D width of the hidden states, V vocabulary. A call needs scratch memory for the logits of
a few tokens only (``SCRATCH_BYTES``), whatever M and V are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .checks import activation, check_alike, expect, refuse_devices, refuse_grad, refuse_tokens
from .registration import define
from .segments import Segments

REDUCTIONS = ("mean", "sum")
SCHEMA = (
    "(Tensor x, Tensor w, Tensor? bias, Tensor targets, Tensor offsets, int ignore_index, bool mean, float softcap, "
    "bool gradient) -> (Tensor, Tensor, Tensor)"
)


def linear_cross_entropy(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    segments: Segments,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    softcap: float = 0.0,
    gradient: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of each segment's own tokens under logits ``z = x wᵀ + bias`` that never exist all at once.

    The loss of a counted token is ``log Σ_v exp z_v - z_target``; logits, losses and the softmax are float32 whatever
    the dtype of ``x``. w and bias are frozen: they receive no gradient. A segment without counted tokens has loss 0.
    Where a counted token's target is not in 0 … V-1, its loss and its row of the gradient are NaN. Nothing is read
    back to the host.

    Args:
        x: ``[M,D]``, hidden states.
        w: ``[V,D]``, the head's weight, in the dtype of x.
        bias: ``[V]`` or None, in the dtype of w or float32.
        targets: int64 ``[M]``, what each token is to predict; ``ignore_index`` where nothing is counted.
        segments: covers the M tokens; clients play no part.
        ignore_index: marks tokens that no loss counts.
        reduction: 'mean' over a segment's counted tokens, or their 'sum'.
        softcap: c of ``c·tanh(z/c)`` in place of z (Gemma 2); 0 leaves z.
        gradient: whether the gradient is computed too.

    Returns:
        losses ``[S]`` float32; right int32 ``[S]``, counted tokens whose target has the largest logit; and
        ``dx [M,D]``, the gradient of each token's own segment's loss, in the dtype of x (``[0,D]`` where not asked).
    """
    op = "linear_cross_entropy"
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, w, bias)):
        refuse_grad(op)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    if not 0.0 <= softcap < math.inf:
        raise ValueError(f"softcap must be 0 (none) or positive and finite, got {softcap}")
    tokens, d = activation(op, "x", x)
    v, w_d = activation(op, "w", w)
    check_alike(op, "x", x, "w", w)
    if w_d != d or v == 0 or d == 0:
        raise ValueError(f"{op}: w must be [V,D] with V > 0 and D = {d} as in x, got {tuple(w.shape)}")
    if bias is not None:
        expect("bias", bias, (v,), w.dtype if bias.dtype is w.dtype else torch.float32)
    if tokens != segments.n_tokens:
        refuse_tokens(op, segments, x=x)
    expect("targets", targets, (tokens,), torch.int64)
    tensors = {"x": x, "bias": bias, "targets": targets, "offsets": segments.offsets}
    if any(t is not None and t.device != x.device for t in tensors.values()):
        refuse_devices(op, **tensors)
    mean = reduction == "mean"
    return _linear_cross_entropy(x, w, bias, targets, segments.offsets, ignore_index, mean, softcap, gradient)


def _fake(x, w, bias, targets, offsets, ignore_index, mean, softcap, gradient):
    s = offsets.shape[0] - 1
    losses = x.new_empty(s, dtype=torch.float64 if x.dtype is torch.float64 else torch.float32)
    return losses, x.new_empty(s, dtype=torch.int32), x.new_empty(x.shape if gradient else (0, x.shape[1]))


_linear_cross_entropy = define("linear_cross_entropy", SCHEMA, _fake)
