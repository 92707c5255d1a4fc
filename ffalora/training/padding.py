"""What a batch's longest sample may not do to the others: they are padded to its length, and must not notice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.targets import not_compiled
from ..adapters.uses import quiet, telling_head
from ..data.tasks import Losses
from .independence import SamplesNotIndependent, numbers_of
from .plain import is_exact

#: Largest change of a sample's loss that rounding explains, in float32 and in narrower formats: relative to the loss,
#: where that is at least the second number. A small loss is a difference of outputs, and rounded as they are.
_WIDE, _NARROW = (1e-4, 0.05), (5e-2, 1.0)


@dataclass
class PaddingWatch:
    """Looks at batches until one shows whether padding changes a sample's loss. That takes batches of two lengths:
    where all are padded to one length, what padding does is nobody else's doing.
    """

    has_told: bool = False
    _lengths: set[int] = field(default_factory=set, repr=False)

    def look(self, model: nn.Module, losses: Losses, inputs: Mapping[str, Tensor], targets: Tensor) -> None:
        """Compares one sample's loss as it is padded here with that as a shorter batch seen before would pad it.

        Args:
            inputs: with ``attention_mask`` ``[S,...,T]``, 1 for real tokens; without one nothing is known of padding.

        Raises:
            SamplesNotIndependent: the losses differ.
        """
        for row, end in self._shorter(inputs):
            here = _rows({**inputs, "": targets}, row)
            there = _cut(here, here["attention_mask"].shape, end)
            if there is not None:
                self._compare(model, losses, here, there)
                break
        if (mask := self._open_mask(inputs)) is not None:
            self._lengths.add(mask.shape[-1])

    def wants(self, inputs: Mapping[str, Tensor]) -> bool:
        """Whether a look at this batch may tell, or is needed for later ones to tell."""
        mask = self._open_mask(inputs)
        if mask is None:
            return False
        return mask.shape[-1] not in self._lengths or next(self._shorter(inputs), None) is not None

    def _open_mask(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """The mask of a batch that may still tell; None where it tells nothing of padding, or all has been told."""
        mask = inputs.get("attention_mask")
        return None if self.has_told or mask is None or mask.dim() < 2 or not mask.numel() else mask

    def _shorter(self, inputs: Mapping[str, Tensor]) -> Iterator[tuple[int, slice]]:
        """A sample that fits into the length of a batch seen before, and where, for each such length and each side."""
        mask = self._open_mask(inputs)
        if mask is None:
            return
        real = mask.flatten(1, -2).bool().any(1) if mask.dim() > 2 else mask.bool()
        for length in sorted(length for length in self._lengths if length < mask.shape[-1]):
            for end in (slice(0, length), slice(mask.shape[-1] - length, None)):
                fits = real[:, end].sum(1) == real.sum(1)
                if bool(fits.any()):
                    yield int(fits.int().argmax()), end

    @torch.no_grad()
    def _compare(self, model: nn.Module, losses: Losses, here: dict[str, Tensor], there: dict[str, Tensor]) -> None:
        found, lengths = [], []
        model = not_compiled(model)
        with quiet(model), telling_head(model):
            for given in (here, there):
                inputs = {name: value for name, value in given.items() if name}
                outputs = model(**inputs)
                found.append(float(losses(outputs, given[""])))
                lengths.append(inputs["attention_mask"].shape[-1])
        self.has_told = any(bool(value.any()) for value in numbers_of(outputs, 1).values())
        is_wide = is_exact(model, here[""].device) and "forward" not in vars(model)  # accelerate wraps it in autocast
        share, least = _WIDE if is_wide else _NARROW
        if abs(found[0] - found[1]) > share * max(abs(found[0]), abs(found[1]), least):
            raise SamplesNotIndependent(
                f"a sample's loss is {found[0]:.4g} in a batch of {lengths[0]} tokens and {found[1]:.4g} in one of "
                f"{lengths[1]}: the model or the loss counts padding, so that the longest sample of a batch moves the "
                "gradients of all others. Average over a sample's own tokens (by its mask or its targets), give the "
                "model what tells padding apart, or pad all batches to one length"
            )


def _rows(given: Mapping[str, Tensor], row: int) -> dict[str, Tensor]:
    return {name: value[row : row + 1] for name, value in given.items()}


def _cut(given: Mapping[str, Tensor], shape: torch.Size, end: slice) -> dict[str, Tensor] | None:
    """One sample with the tokens at ``end`` alone, of whatever has tokens; None where more than padding would go."""
    cut, at = {}, len(shape) - 1
    for name, value in given.items():
        if value.shape[: len(shape)] == shape:
            gone = torch.ones(shape[-1], dtype=torch.bool, device=value.device)
            gone[end] = False
            left_out = value.movedim(at, 0)[gone]
            if not bool((left_out == left_out[:1]).all()):
                return None
            value = value.movedim(at, 0)[end].movedim(0, at)
        cut[name] = value
    return cut


def longest_apart(model: nn.Module) -> tuple[str, str, int] | None:
    """The rotary embeddings of transformers that a batch's longest sample decides beyond some number of tokens.

    Returns:
        Their name, their kind ('dynamic' or 'longrope') and that number, the least where there are several.
    """
    found = [(name, kind, limit) for name, module in model.named_modules() for kind, limit in _limits(module)]
    return min(found, key=lambda each: each[2], default=None)


def _limits(module: Any) -> list[tuple[str, int]]:
    kinds = vars(module).get("rope_type")
    given = getattr(getattr(module, "config", None), "rope_parameters", None) or {}
    by_layer = kinds if isinstance(kinds, dict) else {"": kinds}
    found = []
    for layer, kind in by_layer.items():
        if kind == "longrope":
            own = given[layer] if isinstance(kinds, dict) else given
            found.append((kind, int(own["original_max_position_embeddings"])))
        elif isinstance(kind, str) and "dynamic" in kind:
            found.append((kind, int(module.original_max_seq_len)))
    return found


def check_length(found: tuple[str, str, int] | None, tokens: int) -> None:
    """A batch's longest sample has no more tokens than leave rotary embeddings alone.

    Args:
        found: see :func:`longest_apart`.

    Raises:
        SamplesNotIndependent: it has, and would change the embeddings of every other sample.
    """
    if found is not None and tokens > found[2]:
        name, kind, limit = found
        raise SamplesNotIndependent(
            f"{name}: rotary embeddings of rope_type={kind!r} follow the longest sample of a batch where it has more "
            f"than {limit} tokens, and here it has {tokens}, so that it moves the gradients of all others; set "
            f"max_length to at most {limit}"
        )
