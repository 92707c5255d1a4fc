"""Features of a frozen model: the state that its task head reads, one row a sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def states_read_by(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Within the block, every input of ``layer`` is appended to the list: float32, on the CPU."""
    read: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        read.append(arguments[0].detach().float().cpu())

    handle = layer.register_forward_pre_hook(keep)
    try:
        yield read
    finally:
        handle.remove()


@torch.inference_mode()
def head_features(model: nn.Module, head: nn.Linear, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """What ``head`` is given for each sample: pooled states of an encoder, in the order of the batches.

    Args:
        model: in evaluation mode; called once a batch.
        head: the first linear layer of its task head.
        batches: keyword arguments of the model, on its device.

    Returns:
        float32 ``[n,D]`` on the CPU.

    Raises:
        ValueError: the head is not read exactly once a batch, or reads more than one state a sample; or no batch.
    """
    rows: list[Tensor] = []
    for number, inputs in enumerate(batches):
        with states_read_by(head) as read:
            model(**inputs)
        if len(read) != 1 or read[0].dim() != 2:
            shapes = [list(state.shape) for state in read]
            raise ValueError(
                f"batch {number}: the head was given {shapes}, where one state [S,D] is needed; name the linear layer "
                "that turns pooled states into logits"
            )
        rows.append(read[0])
    if not rows:
        raise ValueError("batches is empty: there is nothing to compute features of")
    return torch.cat(rows)
