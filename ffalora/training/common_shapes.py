"""Batches brought to shapes that many others have, so that a few recorded passes serve them all."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from ..data.examples import IGNORE_INDEX
from ..models import needs_no_mask

#: Inputs of texts that are neither packed nor padded.
OF_A_WHOLE_TEXT = {"input_ids", "token_type_ids"}


def shared_size(count: int, multiple: int = 1) -> int:
    """What a recording has room for: at most an eighth more than ``count``, or up to a ``multiple``, so that few shapes
    serve Poisson batches of all sizes.
    """
    step = max(multiple, 1 << max(0, count.bit_length() - 4))
    return -(-count // step) * step


def widened(inputs: Mapping[str, Tensor], targets: Tensor, longest: int) -> tuple[Mapping[str, Tensor], Tensor]:
    """Texts ``[S,T]`` that are padded on the right with more of the same padding, up to a length that many batches
    share; targets of their tokens with more that are ignored. Whatever looks otherwise comes back as it is.
    """
    mask = inputs.get("attention_mask")
    if mask is None or mask.dim() != 2 or set(inputs) - (OF_A_WHOLE_TEXT | {"attention_mask"}):
        return inputs, targets
    tokens, hidden = mask.shape[1], mask == 0
    more = min(shared_size(tokens, 8), max(longest, tokens)) - tokens
    if more == 0 or not all(value.shape == mask.shape for value in inputs.values()):
        return inputs, targets
    if not bool(hidden.any()) or bool((mask[:, 1:] > mask[:, :-1]).any()):
        return inputs, targets
    if targets.dim() > 1:
        if targets.shape != mask.shape or not bool((targets[hidden] == IGNORE_INDEX).all()):
            return inputs, targets
        targets = F.pad(targets, (0, more), value=IGNORE_INDEX)
    return {name: F.pad(value, (0, more), value=int(value[hidden][0])) for name, value in inputs.items()}, targets


def without_idle_mask(model: nn.Module, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The inputs without an attention mask that hides nothing, for models that take none for that: with one, a
    recorded pass could not see that it is idle, and would take slower attention.
    """
    mask = inputs.get("attention_mask")
    if mask is None or not needs_no_mask(model) or not bool(mask.all()):
        return inputs
    return {name: value for name, value in inputs.items() if name != "attention_mask"}
