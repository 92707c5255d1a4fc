"""``linear_cross_entropy``: the vendor's products over chunks of tokens, and the softmax between them in one kernel.

scratch [chunk, V] float32   ── x wᵀ of a chunk of tokens (vendor)
    │ read twice: maximum and sum, then the gradient
    ▼
the same memory, in x's dtype   ── softmax - one-hot, row by row in place
    │ times w (vendor)
    ▼
dx of the chunk, once the segments' weights have multiplied it
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import cdiv, check_device, check_dtype

#: Logits that exist at a time: 512 tokens of a vocabulary of 128k.
SCRATCH_BYTES = 2**28
#: Tokens of a chunk are a multiple of this where so many fit: whole tiles of the products.
CHUNK_TILE = 128
VOCABULARY_BLOCK, VOCABULARY_WARPS = 2048, 8
#: Rows of logits start at multiples of this.
PITCH_UNIT = tl.constexpr(64)
TOKEN_BLOCK = 1024
#: float16 loses probabilities below 6e-8: they are stored this many times as large, and weights that much smaller.
HALF_GAIN = 4096.0


@triton.jit(do_not_specialize=["ignore_index"])
def _weights_kernel(targets, offsets, weights, ignore_index, MEAN: tl.constexpr, BLOCK: tl.constexpr):
    """What each token's loss counts in its segment's: 0 where it is ignored, else 1 or 1/(tokens counted)."""
    start = tl.load(offsets + tl.program_id(0))
    end = tl.load(offsets + tl.program_id(0) + 1)
    lanes = tl.arange(0, BLOCK)
    counts = tl.zeros((BLOCK,), tl.int32)
    for first in range(start, end, BLOCK):
        live = first + lanes < end
        target = tl.load(targets + first + lanes, mask=live, other=0)
        counts += (live & (target != ignore_index)).to(tl.int32)
    weight = 1.0
    if MEAN:
        weight = 1.0 / tl.maximum(tl.sum(counts), 1).to(tl.float32)
    for first in range(start, end, BLOCK):
        live = first + lanes < end
        target = tl.load(targets + first + lanes, mask=live, other=0)
        tl.store(weights + first + lanes, tl.where(target != ignore_index, weight, 0.0), mask=live)


@triton.jit
def _logits(z, bias, column, n, softcap, BIASED: tl.constexpr, CAPPED: tl.constexpr):
    """Logits of these columns from their products, -inf beyond the vocabulary."""
    if BIASED:
        z += tl.load(bias + column, mask=column < n, other=0.0).to(tl.float32)
    if CAPPED:
        z = softcap * (1.0 - 2.0 / (tl.exp(z * (2.0 / softcap)) + 1.0))
    return tl.where(column < n, z, float("-inf"))


@triton.jit(do_not_specialize=["first_token", "pitch_units", "n", "ignore_index"])
def _softmax_gradient_kernel(
    products, gradient, bias, targets, losses, right, first_token, pitch_units, n, ignore_index, softcap, gain,
    BIASED: tl.constexpr, CAPPED: tl.constexpr, GRADIENT: tl.constexpr, NARROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss of one token, and ``gain · (softmax(z) - one-hot)`` over the memory of its products.

    A narrow gradient takes half of the row: what a block writes has been read in the blocks before, or by this one,
    hence the barrier.
    """
    row = tl.program_id(0).to(tl.int64)
    pitch = pitch_units * PITCH_UNIT
    products += row * pitch
    gradient += row * pitch * (2 if NARROW else 1)
    lanes = tl.max_contiguous(tl.arange(0, BLOCK), 4)  # a thread's 16 bytes: more would part a warp's reads
    token = first_token + tl.program_id(0)
    target = tl.load(targets + token)
    if target == ignore_index:
        tl.store(losses + token, 0.0)
        tl.store(right + token, 0)
        if GRADIENT:
            for first in range(0, pitch, BLOCK):
                column = first + lanes
                tl.store(gradient + column, tl.zeros((BLOCK,), gradient.dtype.element_ty), mask=column < pitch)
        return
    peaks = tl.full((BLOCK,), float("-inf"), tl.float32)
    sums = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, pitch, BLOCK):
        column = first + lanes
        product = tl.load(products + column, mask=column < pitch, other=0.0)
        z = _logits(product, bias, column, n, softcap, BIASED, CAPPED)
        higher = tl.maximum(peaks, z)
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        sums = sums * tl.exp(peaks - shift) + tl.exp(z - shift)
        peaks = higher
    peak = tl.max(peaks)
    shift = tl.where(peak == float("-inf"), 0.0, peak)
    logarithm = tl.log(tl.sum(sums * tl.exp(peaks - shift)))
    known = (target >= 0) & (target < n)
    chosen = tl.load(products + target, mask=known, other=0.0)
    chosen = _logits(chosen, bias, tl.where(known, target, 0), n, softcap, BIASED, CAPPED)
    logarithm = tl.where(known, logarithm, float("nan"))
    tl.store(losses + token, logarithm - (chosen - shift))
    tl.store(right + token, ((chosen >= peak) & (logarithm == logarithm)).to(tl.int32))
    if GRADIENT:
        tl.debug_barrier()  # a float32 gradient takes the place of the target's logit, which every warp has now read
        level = shift + logarithm
        for first in range(0, pitch, BLOCK):
            column = first + lanes
            product = tl.load(products + column, mask=column < pitch, other=0.0)
            z = _logits(product, bias, column, n, softcap, BIASED, CAPPED)
            slope = tl.exp(z - level) - (column == target).to(tl.float32)
            if CAPPED:
                slope *= tl.where(column < n, 1.0 - (z / softcap) * (z / softcap), 0.0)
            if NARROW:
                tl.debug_barrier()
            tl.store(gradient + column, (gain * slope).to(gradient.dtype.element_ty), mask=column < pitch)


@triton.jit
def _segments_kernel(token_losses, token_right, weights, offsets, losses, right, BLOCK: tl.constexpr):
    """Weighted losses and right predictions of one segment, in the order of its tokens."""
    start = tl.load(offsets + tl.program_id(0))
    end = tl.load(offsets + tl.program_id(0) + 1)
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    count = tl.zeros((BLOCK,), tl.int32)
    for first in range(start, end, BLOCK):
        live = first + lanes < end
        loss = tl.load(token_losses + first + lanes, mask=live, other=0.0)
        total += loss * tl.load(weights + first + lanes, mask=live, other=0.0)
        count += tl.load(token_right + first + lanes, mask=live, other=0)
    tl.store(losses + tl.program_id(0), tl.sum(total))
    tl.store(right + tl.program_id(0), tl.sum(count))


def chunk_tokens(v: int) -> int:
    """Tokens whose float32 logits fill the scratch memory; a function of the vocabulary alone."""
    fit = max(SCRATCH_BYTES // (4 * PITCH_UNIT.value * cdiv(v, PITCH_UNIT.value)), 1)
    return fit if fit < CHUNK_TILE else fit // CHUNK_TILE * CHUNK_TILE


def linear_cross_entropy(
    x: Tensor, w: Tensor, bias: Tensor | None, targets: Tensor, offsets: Tensor,
    ignore_index: int, mean: bool, softcap: float, gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See :func:`ffalora_kernels.head_loss.linear_cross_entropy`.

    Softmax, losses and sums of a token have the same bits whatever shares its batch; the products have those of the
    vendor, who may choose another kernel for the tokens left over in the last chunk.
    """
    check_device("linear_cross_entropy", _softmax_gradient_kernel, x)
    check_dtype("linear_cross_entropy", x)
    (m, d), v, s = x.shape, w.shape[0], offsets.numel() - 1
    losses, right = x.new_empty(s, dtype=torch.float32), x.new_empty(s, dtype=torch.int32)
    dx = x.new_empty(m if gradient else 0, d)
    if s == 0:
        return losses, right, dx
    weights, token_losses = (x.new_empty(m, dtype=torch.float32) for _ in range(2))
    token_right = x.new_empty(m, dtype=torch.int32)
    targets, bias = targets.contiguous(), None if bias is None else bias.contiguous()
    _weights_kernel[(s,)](targets, offsets, weights, ignore_index, MEAN=mean, BLOCK=TOKEN_BLOCK, num_warps=4)
    gain = HALF_GAIN if x.dtype == torch.float16 else 1.0
    chunk, pitch_units = min(chunk_tokens(v), m), cdiv(v, PITCH_UNIT.value)
    products = x.new_empty(chunk, pitch_units * PITCH_UNIT.value, dtype=torch.float32)
    slopes = products.view(x.dtype)
    sums = x.new_empty(chunk if gradient else 0, d, dtype=torch.float32)
    for first in range(0, m, max(chunk, 1)):
        rows, count = slice(first, first + chunk), min(chunk, m - first)
        product_(products[:count, :v], x[rows], w.t())
        _softmax_gradient_kernel[(count,)](
            products, slopes, bias, targets, token_losses, token_right, first, pitch_units, v, ignore_index,
            softcap, gain, BIASED=bias is not None, CAPPED=softcap > 0, GRADIENT=gradient,
            NARROW=x.element_size() == 2, BLOCK=VOCABULARY_BLOCK, num_warps=VOCABULARY_WARPS,
        )  # fmt: skip
        if gradient:
            product_(sums[:count], slopes[:count, :v], w)
            torch.mul(sums[:count], (weights[rows] / gain)[:, None], out=dx[rows])
    _segments_kernel[(s,)](
        token_losses, token_right, weights, offsets, losses, right, BLOCK=TOKEN_BLOCK, num_warps=4
    )  # fmt: skip
    return losses, right, dx


def product_(out: Tensor, a: Tensor, b: Tensor) -> None:
    """``out = a b`` in float32, whatever the dtype of ``a`` and ``b``, by the vendor's library."""
    if a.dtype == torch.float32:
        torch.mm(a, b, out=out)
    elif a.device.type == "cuda" and not torch.version.hip and hasattr(torch.ops.aten.mm, "dtype_out"):
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        out.copy_(a.float() @ b.float())
