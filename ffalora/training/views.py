"""Views of a sample: it passes several times, each time changed at random, and what is clipped is their mean gradient.

Augmentation multiplicity (De, Berrada, Hayes, Smith, Balle, "Unlocking High-Accuracy Differentially Private Image
Classification through Scale", arXiv:2204.13650). All views of a sample lie in one segment, so that a sample moves the
sum by at most C, whatever their number: ε is that of one view. Changes follow public rules at public rates, and are
drawn as dropout masks are: by (key, client, sample, view, step), so that no sample changes what another's views are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..adapters.dropout import branched, mix
from ..config import DataConfig
from ..data.tokenize import pad_token_of
from .dropout import DropoutKeys

#: Keeps what views are made from apart from masks: calls of dropout have numbers below 2⁶².
_STREAM = 0x6A09_E667_F3BC_C909
_BITS = 24

#: Changes the inputs of a padded batch by its keys, int64 ``[S]``, one a row.
Augment = Callable[[dict[str, Tensor], Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Views:
    """What passes through the model in a sample's place.

    Attributes:
        count: K, how many views each sample has.
        augment: what they are made by; None leaves them alike but for what drops out of each.
    """

    count: int = 1
    augment: Augment | None = None

    def of(
        self, inputs: dict[str, Tensor], targets: Tensor, keys: Callable[[], DropoutKeys]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs and targets of all views, K rows a sample, one sample after another.

        Args:
            inputs, targets: a row a sample, ``[S, ...]``, padded.
            keys: gives what views are drawn from, one key a view.
        """
        inputs = {name: value.repeat_interleave(self.count, 0) for name, value in inputs.items()}
        if self.augment is not None:
            inputs = self.augment(inputs, mix(torch.as_tensor(keys().samples) ^ _STREAM))
        return inputs, targets.repeat_interleave(self.count, 0)


#: Every sample passes once, as it is.
AS_IT_IS = Views()


@dataclass(frozen=True)
class WordDropout:
    """Leaves words out, each with probability ``rate``, and moves the others up. Special tokens stay; a text that no
    other token would be left of stays whole.

    Attributes:
        rate: share of the words that a view lacks.
        special: bool ``[V]``, the tokens that stay; begins: bool ``[V]``, those that begin a word, which others go on.
        padding: the token that rows are filled up with.
    """

    rate: float
    special: Tensor
    begins: Tensor
    padding: int

    @classmethod
    def of(cls, tokenizer: Any, rate: float) -> WordDropout:
        """By the vocabulary of a tokenizer."""
        pieces = [str(piece) for piece in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
        special = np.isin(np.arange(len(pieces)), tokenizer.all_special_ids)
        return cls(rate, torch.from_numpy(special), torch.from_numpy(begin_words(pieces)), pad_token_of(tokenizer))

    def __call__(self, inputs: dict[str, Tensor], keys: Tensor) -> dict[str, Tensor]:
        """As :data:`Augment`; inputs ``[S,T]``, whose real tokens lead."""
        tokens, real = inputs["input_ids"], inputs["attention_mask"].bool()
        free = real & ~self.special[tokens]
        word = (self.begins[tokens] | ~free).cumsum(1)  # [S,T], from 0 or 1 on
        falls = _falls(branched(keys, tokens.shape[1] + 1), self.rate).gather(1, word)
        kept = real & ~(free & falls)
        kept |= real & ~(kept & free).any(1, keepdim=True)
        count = kept.sum(1)
        order = (~kept).int().argsort(dim=1, stable=True)[:, : int(count.max())]
        real = torch.arange(order.shape[1]) < count[:, None]
        fill = dict.fromkeys(inputs, 0) | {"input_ids": self.padding}
        return {name: value.gather(1, order).masked_fill(~real, fill[name]) for name, value in inputs.items()}


@dataclass(frozen=True)
class Shift:
    """Moves images by whole pixels along each side, as far as ``rate`` of it and at least one, all distances alike;
    what lies outside is the nearest pixel of the edge.

    Attributes:
        rate: the farthest that an image is moved, in sides.
    """

    rate: float

    def __call__(self, inputs: dict[str, Tensor], keys: Tensor) -> dict[str, Tensor]:
        """As :data:`Augment`; ``pixel_values [S, channels, height, width]``."""
        pixels, drawn = inputs["pixel_values"], branched(keys, 2)
        rows, columns = (self._lines(drawn[:, side], size) for side, size in enumerate(pixels.shape[-2:]))
        sample = torch.arange(len(pixels))[:, None, None]
        moved = pixels.movedim(1, -1)[sample, rows[:, :, None], columns[:, None, :]]  # [S, height, width, channels]
        return inputs | {"pixel_values": moved.movedim(-1, 1).contiguous()}

    def _lines(self, drawn: Tensor, size: int) -> Tensor:
        """Which line of an image each of the moved one's is, ``[S, size]``."""
        most = max(1, round(self.rate * size))
        by = drawn.remainder(2 * most + 1) - most
        return (torch.arange(size) + by[:, None]).clamp(0, size - 1)


def make_views(data: DataConfig, tokenizer: Any) -> Views:
    """The views that a configuration asks for; ``tokenizer`` of its model, None where it takes images."""
    if data.augment == "word-dropout":
        return Views(data.views, WordDropout.of(tokenizer, data.augment_rate))
    if data.augment == "shift":
        return Views(data.views, Shift(data.augment_rate))
    return Views(data.views) if data.views > 1 else AS_IT_IS


def begin_words(pieces: list[str]) -> np.ndarray:
    """bool ``[V]``, which tokens of a vocabulary begin a word: in the manner of WordPiece those without ``##``, in that
    of byte-level BPE and SentencePiece those with a blank's sign, and all where there is neither.
    """
    inside = np.array([piece.startswith("##") for piece in pieces])
    begins = np.array([piece.startswith(("Ġ", "▁")) for piece in pieces])
    return begins if begins.sum() > inside.sum() else ~inside


def _falls(drawn: Tensor, rate: float) -> Tensor:
    """bool, with probability ``rate`` to within 2⁻²⁴; ``drawn`` int64, as random as :func:`branched` makes them."""
    return (drawn >> (64 - _BITS) & (1 << _BITS) - 1) < round(rate * 2**_BITS)
