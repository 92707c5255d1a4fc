"""Batches without padding: samples laid end to end in one row of tokens, with attention kept inside each sample.

Every linear layer then computes on real tokens only (for attention see ``packed_attention``). The inputs use the names
that transformers gives packed batches (``position_ids``, ``cu_seq_lens_q`` …), which its FlashAttention understands
too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ffalora_kernels import Segments

from ..adapters import TrainingPass
from ..adapters.uses import telling_head
from ..data.head_loss import HeadStates
from ..data.tasks import logits_of
from .packed_attention import ATTENTION, PaddedGroups

#: Samples whose packed outputs are compared with padded ones: one that begins, one between, one that ends.
_COMPARED = 3


def pack(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """A padded batch ``[S,T]`` as one row of its M real tokens.

    Args:
        inputs: ``input_ids``, ``attention_mask`` (1 for real tokens, which lead each row) and other ``[S,T]`` tensors.

    Returns:
        The same names as ``[1,M]`` without the mask; ``position_ids`` (from 0 in each sample), ``cu_seq_lens_q/k``
        (int32 ``[S+1]``, where each sample starts), ``max_length_q/k``, and ``packed_groups`` for this package's
        attention.
    """
    real = inputs["attention_mask"].bool()
    lengths = real.sum(1)
    starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32)
    packed: dict[str, Any] = {name: value[real][None] for name, value in inputs.items() if name != "attention_mask"}
    packed["position_ids"] = torch.arange(real.shape[1], device=real.device).expand(real.shape)[real][None]
    packed |= {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts}
    packed["packed_groups"] = PaddedGroups(starts, lengths.tolist())
    return packed | {"max_length_q": real.shape[1], "max_length_k": real.shape[1]}


def packed_segments(packed: Mapping[str, Any], current: TrainingPass) -> Segments:
    """The tokens of a pass's segments in a packed batch."""
    starts = packed["cu_seq_lens_q"][current.sample_offsets.long()]
    longest = current.longest * packed["max_length_q"]
    return Segments(starts, current.client, current.state.shape[0], longest, packed["input_ids"].shape[1])


def padded_outputs(outputs: Any, real: Tensor) -> Any:
    """A packed batch's output as that of the padded one: what it says of tokens in their samples' rows, zero elsewhere.

    Args:
        outputs: with ``logits`` ``[1,M,V]`` (or what stands for them before a frozen head); of a model with one output
            a sample it comes back as it is.
        real: bool ``[S,T]``, where the padded batch has tokens.
    """
    logits = logits_of(outputs)
    if isinstance(logits, HeadStates):
        return SimpleNamespace(logits=replace(logits, states=_rows_of(logits.states, real)))
    return SimpleNamespace(logits=_rows_of(logits, real)) if logits.dim() == 3 else outputs


def _rows_of(states: Tensor, real: Tensor) -> Tensor:
    """``[1,M,D]`` as ``[S,T,D]``."""
    rows = states.new_zeros(*real.shape, states.shape[-1])
    return rows.masked_scatter(real[..., None], states[0])


def mean_of_samples(states: Tensor, starts: Tensor) -> Tensor:
    """The mean of each sample's states: ``[1,M,D]`` and int32 ``[S+1]`` to ``[S,D]``."""
    lengths = starts.diff().long()
    sample = torch.arange(len(lengths), device=states.device).repeat_interleave(lengths, output_size=states.shape[1])
    total = states.new_zeros(len(lengths), states.shape[-1]).index_add(0, sample, states[0])
    return total / lengths.clamp(min=1)[:, None]


@contextmanager
def packed_attention(model: nn.Module) -> Iterator[None]:
    """Within the block the model's attention stays inside the samples of packed batches.

    Raises:
        ValueError: the model does not choose its attention by name (transformers' attention interface).
    """
    configs = {
        id(m.config): m.config for m in model.modules() if hasattr(getattr(m, "config", None), "_attn_implementation")
    }
    if not configs:
        raise ValueError("model.packed=true needs a model with transformers' attention interface; set it to false")
    before = [config._attn_implementation for config in configs.values()]
    for config in configs.values():
        config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        for config, name in zip(configs.values(), before, strict=True):
            config._attn_implementation = name


@torch.no_grad()
def check_packing(model: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
    """Compares a model's packed outputs with its padded ones; False where the batch has too few samples to tell.

    Raises:
        ValueError: they differ: the model's attention looks beyond a sample, or its positions do not begin at 0. Its
            samples would be mixed, or it would be trained on other numbers than it is evaluated on. Or it does not take
            the inputs of packed batches.
    """
    few = {name: value[:_COMPARED] for name, value in inputs.items()}
    if len(few["attention_mask"]) < 2:
        return False
    real = few["attention_mask"].bool()
    with telling_head(model):
        padded = logits_of(model(**few)).double()
        try:
            with packed_attention(model):
                packed = logits_of(padded_outputs(model(**pack(few)), real)).double()
        except (AttributeError, RuntimeError, TypeError) as error:
            raise ValueError(f"this model does not take packed batches ({error}); set model.packed to false") from error
    if padded.dim() == 3:  # of tokens: what stands beside a sample's own is nobody's
        packed, padded = packed[real], padded[real]
    difference = float((packed - padded).square().mean().sqrt() / padded.square().mean().sqrt())
    narrow = any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
    if not difference <= (0.05 if narrow else 1e-3):
        raise ValueError(
            f"model.packed=true changes this model's outputs by {difference:.2g} of their size: its attention or its "
            "positions do not follow packed samples; set model.packed to false"
        )
    return True
