"""Dropout whose masks belong to samples: what a sample drops does not depend on what shares its batch.

A mask is a function of its sample's key, of the call of dropout within the pass, and of the position within the sample,
never of the position in a batch: with one sample more or less, or cut, padded or packed differently, all others keep
their masks. (Drawn by position, one record would redraw everybody's masks, and clipping would bound nothing.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_WORD = 16  # bits that decide about one element
_GOLDEN = -0x61C8864680B583EB  # 2⁶⁴ over the golden ratio, as a signed number
_FIRST, _SECOND = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def mix(z: Tensor) -> Tensor:
    """A bijection of 64-bit integers whose outputs look independent (SplitMix64's: Steele, Lea, Flood 2014)."""
    z = (z ^ (z >> 30 & (1 << 34) - 1)) * _FIRST
    z = (z ^ (z >> 27 & (1 << 37) - 1)) * _SECOND
    return z ^ (z >> 31 & (1 << 33) - 1)


def branched(keys: Tensor, count: int) -> Tensor:
    """``count`` keys of each key: int64 ``[...]`` to ``[..., count]``."""
    return _at(keys, torch.arange(count, device=keys.device))


def _at(keys: Tensor, positions: Tensor) -> Tensor:
    """The keys of int64 ``positions [..., count]`` of each key: ``[...]`` to ``[..., count]``."""
    return mix(keys[..., None] + _GOLDEN * (positions + 1))


def positions_of(mask: Tensor | None) -> Tensor | None:
    """``positions`` of :class:`DropoutMasks` for a batch's ``attention_mask [S,T]``, 1 for real tokens; None where that
    is missing or of another kind.
    """
    if mask is None or mask.dim() != 2:
        return None
    before = mask.bool().int().argmax(1, keepdim=True)
    return torch.arange(mask.shape[1], device=mask.device) - before


@dataclass
class DropoutMasks:
    """The masks of one forward pass.

    Every call of dropout takes its number from torch's default generator, which whoever opens the pass seeds: what
    recomputes a part of the pass (checkpointing of activations) puts the generator back, and so finds the same masks.

    Attributes:
        keys: int64 ``[S]``, one a sample.
        starts: int32 ``[S+1]``, where each sample's tokens start in a packed batch ``[1,M,...]``; None for padded ones.
        positions: int64 ``[S,T]``, of a padded batch's columns in their samples, negative before these begin; None
            counts columns.
        shared: the generator's seed for the pass.
        drew: whether anything was drawn in the pass: masks, or choices that all samples share.
    """

    keys: Tensor
    starts: Tensor | None = None
    positions: Tensor | None = None
    shared: int = 0
    drew: bool = False

    def keep(self, shape: Sequence[int], p: float) -> Tensor:
        """bool ``shape``: which elements stay, each with probability ``1 - p`` to within 2⁻¹⁷.

        Args:
            shape: leads with the samples, or with several rows a sample, one sample after another; or, packed, with 1
                and the tokens.

        Raises:
            ValueError: another shape: whose element is whose cannot be told.
        """
        self.drew, call = True, int(torch.randint(2**62, ()))
        keys, axes = self._of_rows(mix(self.keys ^ call), tuple(shape))
        *axes, last = axes or [1]
        for axis, count in enumerate(axes):
            own = self._columns(count, keys.dim()) if axis == len(axes) - 1 else None
            keys = branched(keys, count) if own is None else _at(keys, own)
        words = branched(keys, -(-last * _WORD // 64)).view(torch.int16)[..., :last]
        own = self._columns(last, keys.dim()) if len(axes) > 1 else None
        if own is not None:  # weights of attention, over tokens on both sides
            words = words.gather(-1, (own % last).expand(words.shape))
        return (words >= _threshold(p)).view(*shape)

    def _columns(self, count: int, dims: int) -> Tensor | None:
        """``positions`` for an axis that ``dims`` others precede, if it may be that of the tokens."""
        if self.positions is None or self.starts is not None or count != self.positions.shape[1]:
            return None
        return self.positions.view(len(self.positions), *[1] * (dims - 1), count)

    def _of_rows(self, keys: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, list[int]]:
        """A key for each sample (packed: token) of a tensor, and its other axes."""
        samples = len(keys)
        if self.starts is not None and shape[:1] == (1,) and len(shape) > 1:
            lengths = self.starts.diff().long()
            position = torch.arange(shape[1], device=keys.device) - self.starts[:-1].long().repeat_interleave(
                lengths, output_size=shape[1]
            )
            of_tokens = mix(keys.repeat_interleave(lengths, output_size=shape[1]) + _GOLDEN * (position + 1))
            return of_tokens[None], list(shape[2:])
        if self.starts is None and samples and shape[0] % samples == 0:
            rows = [shape[0] // samples] if shape[0] != samples else []
            return keys, [*rows, *shape[1:]]
        raise ValueError(
            f"dropout on a tensor of shape {shape} in a batch of {samples} samples: which element belongs to which "
            "sample cannot be told, so that masks would tie samples together; set this dropout to 0"
        )


def _threshold(p: float) -> int:
    return round(p * 2**_WORD) - 2 ** (_WORD - 1)


def masked_dropout(x: Tensor, p: float, masks: DropoutMasks | None = None) -> Tensor:
    """``x`` with each element zero with probability ``p``, the others over ``1 - p``; keeps one byte an element.

    Args:
        x: ``[..., K]``.
        masks: of the training pass; None draws from torch's generator, as dropout outside a pass does.
    """
    if masks is None:
        keep = torch.empty_like(x, dtype=torch.bool).bernoulli_(1.0 - p)
    else:
        keep, p = masks.keep(x.shape, p), round(p * 2**_WORD) / 2**_WORD
    return _MaskedDropout.apply(x, keep, 1.0 / (1.0 - p))


class _MaskedDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, keep, factor):
        ctx.save_for_backward(keep)
        ctx.factor = factor
        return x * keep * factor

    @staticmethod
    def backward(ctx, dy):
        (keep,) = ctx.saved_tensors
        return dy * keep * ctx.factor, None, None
