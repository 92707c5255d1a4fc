"""The flat state: every trained tensor of a model owns one range of columns, the same in state and arena."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .trained_layer import TrainedLayer

_ALIGNMENT = 4  # float32 columns: ranges start at multiples of 16 bytes


@dataclass(frozen=True)
class Place:
    """Where a trained tensor lies.

    Attributes:
        name: ``layer`` and ``tensor``, which it is of that layer.
        columns: of a row of the state or of the arena, ``size`` of them from ``start`` on.
        slot: its column of ``squares``.
    """

    name: str
    layer: str
    tensor: str
    shape: tuple[int, ...]
    start: int
    size: int
    columns: slice
    slot: int


class Layout:
    """Who owns which columns.

    Attributes:
        places: one :class:`Place` a trained tensor, in order; at: by name.
        width: P, columns of state and arena, padding included.
        size: trained numbers; exactly what a client sends.
        slots: columns of ``squares``.
    """

    def __init__(self, layers: Iterable[TrainedLayer]):
        self.places: list[Place] = []
        self.layers = {layer.name: layer for layer in layers}
        start = 0
        for layer in self.layers.values():
            layer.places, layer.slot = {}, len(self.places)
            for tensor, parameter in layer.trained().items():
                name, shape, end = f"{layer.name}.{tensor}", tuple(parameter.shape), start + parameter.numel()
                columns, slot = slice(start, end), len(self.places)
                place = Place(name, layer.name, tensor, shape, start, end - start, columns, slot)
                self.places.append(place)
                layer.places[tensor] = start
                start = -(-end // _ALIGNMENT) * _ALIGNMENT
        self.at = {place.name: place for place in self.places}
        self.width = start
        self.slots = len(self.places)
        self.size = sum(place.size for place in self.places)

    def parameter(self, place: Place) -> torch.nn.Parameter:
        """The tensor that a place belongs to."""
        return self.layers[place.layer].factors()[place.tensor]

    def parameter_index(self, device: torch.device | str = "cpu") -> Tensor | None:
        """int32 ``[P]``, on the device: each column's parameter index, -1 for padding; None where nothing is padded."""
        if self.size == self.width:
            return None
        index = torch.full((self.width,), -1, dtype=torch.int32)
        first = 0
        for place in self.places:
            index[place.columns] = torch.arange(first, first + place.size, dtype=torch.int32)
            first += place.size
        return index.to(device)

    @torch.no_grad()
    def gather(self) -> Tensor:
        """The model's trained tensors as one row, float32 ``[P]``; padding is zero."""
        row = torch.zeros(self.width, device=self.parameter(self.places[0]).device if self.places else "cpu")
        for place in self.places:
            row[place.columns] = self.parameter(place).detach().reshape(-1)
        return row

    @torch.no_grad()
    def scatter(self, row: Tensor) -> None:
        """Writes a row ``[P]`` back into the model's trained tensors."""
        if tuple(row.shape) != (self.width,):
            raise ValueError(f"state row must have shape ({self.width},), got {tuple(row.shape)}")
        for place in self.places:
            self.parameter(place).copy_(row[place.columns].view(place.shape))

    def payload(self, row: Tensor) -> Tensor:
        """The ``size`` numbers of a row ``[P]`` without padding: what travels."""
        index = self.parameter_index(row.device)
        return row if index is None else row[index >= 0]

    def from_payload(self, payload: Tensor) -> Tensor:
        """The row ``[P]`` of a payload of exactly ``size`` numbers."""
        if tuple(payload.shape) != (self.size,):
            raise ValueError(f"payload must hold {self.size} numbers, got shape {tuple(payload.shape)}")
        index = self.parameter_index(payload.device)
        if index is None:
            return payload
        row = payload.new_zeros(self.width)
        row[index >= 0] = payload
        return row
