"""Batches whose attention mask hides nothing: models of transformers are then faster without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import masking_utils

from .pooled import MeanPooledClassifier


def needs_no_mask(model: nn.Module) -> bool:
    """Whether the model takes no attention mask for one that hides nothing: those of transformers, and ours of them."""
    return isinstance(model, MeanPooledClassifier) or type(model).__module__.startswith("transformers.models.")


@contextmanager
def without_masks() -> Iterator[None]:
    """Within the block, models of transformers that are given no attention mask attend without one.

    While a pass is recorded they cannot look whether a mask is needed (samples might be packed), and make one to be
    safe. With it torch takes slower attention, and for one that was expanded from a single element the slowest, which
    writes every score in float32: twice the time of a whole pass. Nothing that is packed or padded may pass here.
    """
    before = {name: getattr(masking_utils, name) for name in _ANSWERS if hasattr(masking_utils, name)}
    for name in before:
        setattr(masking_utils, name, _ANSWERS[name])
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(masking_utils, name, function)


def _is_not_traced(_: object = None) -> bool:
    return False


def _nothing_is_packed(_: object) -> None:
    return None


_ANSWERS = {"is_tracing": _is_not_traced, "find_packed_sequence_indices": _nothing_is_packed}
