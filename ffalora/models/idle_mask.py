"""Batches whose attention mask hides nothing: models of transformers are then faster without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any

import torch
from torch import nn
from transformers import masking_utils

from .pooled import MeanPooledClassifier

#: What transformers asks before it makes a mask, and the answer within ``without_masks``.
_QUESTIONS = {"is_tracing": False, "find_packed_sequence_indices": None}
_left_out = ContextVar("_left_out", default=False)


def needs_no_mask(model: nn.Module) -> bool:
    """Whether the model takes no attention mask for one that hides nothing: those of transformers, and ours of them."""
    return isinstance(model, MeanPooledClassifier) or type(model).__module__.startswith("transformers.models.")


@contextmanager
def without_masks() -> Iterator[None]:
    """Within the block, in this thread, models of transformers that are given no attention mask attend without one.

    While a pass is recorded they cannot look whether a mask is needed (samples might be packed), and make one to be
    safe. With it torch takes slower attention, and for one that was expanded from a single element the slowest, which
    writes every score in float32: twice the time of a whole pass. Nothing that is packed or padded may pass here.
    """
    _listen()
    before = _left_out.set(True)
    try:
        yield
    finally:
        _left_out.reset(before)


@cache
def _listen() -> None:
    """From now on those questions are answered here, where somebody is within the block.

    A model that is being compiled asks transformers: torch's compiler cannot read a ``ContextVar``.
    """
    for name, answer in _QUESTIONS.items():
        if (ask := getattr(masking_utils, name, None)) is not None:
            setattr(masking_utils, name, _answered(ask, answer))


def _answered(ask: Callable[..., Any], answer: Any) -> Callable[..., Any]:
    @wraps(ask)
    def asked(*given: Any, **named: Any) -> Any:
        if not torch.compiler.is_compiling() and _left_out.get():
            return answer
        return ask(*given, **named)

    return asked
