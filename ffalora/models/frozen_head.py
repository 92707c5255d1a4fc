"""A causal language model without its head: what the frozen head would be given comes out where the logits were.

Losses are then computed by ``linear_cross_entropy``, which never forms the logits of all tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..data.head_loss import HeadStates

_SOFTCAP = "final_logit_softcapping"


@contextmanager
def head_left_out(model: nn.Module) -> Iterator[None]:
    """Within the block the model's output has :class:`HeadStates` for its logits.

    Raises:
        ValueError: the model has no frozen ``nn.Linear`` as output embedding.
    """
    head = frozen_head(model)
    if head is None:
        raise ValueError(f"{type(model).__name__} has no frozen linear head to leave out; call it as it is")
    config = _config_of(model)
    softcap = getattr(config, _SOFTCAP, None) or 0.0

    def states_of(states: Tensor) -> HeadStates:
        return HeadStates(states, head.weight, head.bias, softcap)

    head.forward = states_of
    if softcap:
        setattr(config, _SOFTCAP, None)
    try:
        yield
    finally:
        del head.forward
        if softcap:
            setattr(config, _SOFTCAP, softcap)


def frozen_head(model: nn.Module) -> nn.Linear | None:
    """The output embedding of a model that is not compiled, where it is a plain linear layer that nothing trains."""
    if hasattr(model, "_orig_mod") or model._compiled_call_impl is not None:
        return None
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    plain = type(head) is nn.Linear and not any(p.requires_grad for p in head.parameters())
    return head if plain else None


@torch.no_grad()
def can_leave_head_out(model: nn.Module, inputs: Mapping[str, Tensor], tolerance: float = 1e-3) -> bool:
    """Whether the model's logits are those of its frozen head and of nothing else, tried on the first sample.

    Args:
        model: any; inputs: keyword arguments of its forward, a row a sample.
        tolerance: largest difference of the logits, root mean square over root mean square; fifty times as much for
            narrow formats.
    """
    if frozen_head(model) is None or not len(next(iter(inputs.values()))):
        return False
    one = {name: value[:1] for name, value in inputs.items()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        logits = model(**one).logits.float()
        torch.manual_seed(0)
        try:
            with head_left_out(model):
                found = model(**one).logits
        except (TypeError, AttributeError):  # the model computes something else of its logits
            return False
    if not isinstance(found, HeadStates):
        return False
    again = linear(found.states, found.weight, found.bias).float()
    if found.softcap:
        again = found.softcap * (again / found.softcap).tanh()
    difference = (again - logits).square().mean().sqrt() / logits.square().mean().sqrt()
    return bool(difference <= (tolerance if found.states.dtype == torch.float32 else 50 * tolerance))


def _config_of(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config
