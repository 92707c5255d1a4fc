"""The frozen bottom of an encoder: run as far as its last layer, listened to, and put out of the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NotCacheable(Exception):
    """Why a model or a run cannot begin at a later layer."""


@dataclass(frozen=True)
class Bottom:
    """The part of an encoder that is frozen from its first layer on.

    Attributes:
        encoder: module with ``embeddings``.
        layers: all its layers; the first ``count`` of them hold nothing that is trained.
    """

    encoder: nn.Module
    layers: nn.ModuleList
    count: int

    @property
    def last(self) -> nn.Module:
        """The last frozen layer."""
        return self.layers[self.count - 1]


class Rows(nn.Module):
    """In place of embeddings: ``input_ids [S,T]`` are rows of a table ``[rows,D]`` of states."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table, persistent=False)

    def forward(self, input_ids: Tensor, **_: Any) -> Tensor:
        return F.embedding(input_ids, self.table)


class PassOn(nn.Module):
    """In place of a layer whose work is done: gives back the states that it is given, in the form that it did."""

    def __init__(self, in_tuple: bool) -> None:
        super().__init__()
        self.in_tuple = in_tuple

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states,) if self.in_tuple else hidden_states


class _Reached(Exception):
    """Ends a forward pass that need not go on; holds what the last layer wanted gave."""

    def __init__(self, output: Any) -> None:
        self.output = output


def put_(bottom: Bottom, embeddings: nn.Module, layers: Sequence[nn.Module]) -> None:
    bottom.encoder.embeddings = embeddings
    for number, layer in enumerate(layers):
        bottom.layers[number] = layer


@contextmanager
def states_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Within the block, the states that come out of ``layer`` are appended to the list, as float32."""
    found: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, output: found.append(hidden_states(output).float()))
    try:
        yield found
    finally:
        handle.remove()


@torch.no_grad()
def output_of(model: nn.Module, last: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    """What the layer ``last`` of the model makes of a batch; the layers behind it are not computed."""

    def end(_: nn.Module, __: Any, output: Any) -> None:
        raise _Reached(output)

    handle = last.register_forward_hook(end)
    try:
        model(**inputs)
    except _Reached as reached:
        return reached.output
    finally:
        handle.remove()
    raise NotCacheable("its forward pass does not use its layers one after another")


def hidden_states(output: Any) -> Tensor:
    """Hidden states ``[S,T,D]`` from a layer's output."""
    return output[0] if isinstance(output, tuple) else output
