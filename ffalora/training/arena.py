"""The buffers of a private step: one row of gradients a segment, their squared norms, and each client's clipped sum."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from ..adapters import Adapters

#: What ``squares`` holds before the backward pass; a squared norm is never negative.
UNWRITTEN = -1.0
_BYTES = 2**30


class GradientMissing(RuntimeError):
    """The backward pass left a trained tensor without gradients: training on would only add noise to it."""


class Arena:
    """Reusable buffers for the segments' gradients of one model.

    Attributes:
        gradients: float32 ``[capacity, P]``; padding columns are zero for good.
        squares: float64 ``[capacity, slots]``.
    """

    def __init__(self, adapters: Adapters, device: torch.device | None = None):
        self._adapters = adapters
        self._device = device = adapters.state().device if device is None else device
        self.gradients = torch.zeros(0, adapters.layout.width, device=device)
        self.squares = torch.zeros(0, adapters.layout.slots, dtype=torch.float64, device=device)
        self.poison = False
        self._layout = adapters.layout

    @property
    def most_rows(self) -> int:
        """Rows that a gigabyte holds: the most samples of a physical batch of a private step."""
        return max(1, _BYTES // (4 * self._adapters.layout.width))

    def rows(self, count: int) -> tuple[Tensor, Tensor]:
        """``count`` rows of gradients and squares, ready for a backward pass: squares unwritten, shared tensors
        zeroed.
        """
        layout = self._adapters.layout
        if count > len(self.gradients) or layout is not self._layout:
            doubled = min(2 * len(self.gradients), self.most_rows) if layout is self._layout else 0
            capacity = max(count, doubled)
            self._layout = layout
            self.gradients = torch.zeros(capacity, layout.width, device=self._device)
            self.squares = torch.zeros(capacity, layout.slots, dtype=torch.float64, device=self._device)
        gradients, squares = self.gradients[:count], self.squares[:count]
        self.prepare(gradients, squares)
        return gradients, squares

    def prepare(self, gradients: Tensor, squares: Tensor) -> None:
        """Makes rows ready for a backward pass: squares unwritten, gradients of shared tensors zero."""
        squares.fill_(UNWRITTEN)
        layout = self._layout
        for place in layout.places:
            columns = gradients[:, place.columns]
            if layout.layers[place.layer].shared_use:
                columns.zero_()
            elif self.poison:
                columns.fill_(float("nan"))

    def leave_out(self, gradients: Tensor, squares: Tensor, layers: Collection[str]) -> None:
        """Rows after a pass that is not known to have gone through some layers: unless it did, in compiled code, their
        gradients are zero.
        """
        for slot, place in enumerate(self._layout.places):
            if place.layer in layers and bool((squares[:, slot] == UNWRITTEN).all()):
                gradients[:, place.columns] = 0.0
                squares[:, slot] = 0.0

    def check_written(self, unwritten: Tensor) -> None:
        """Every trained tensor received a gradient from every segment.

        Args:
            unwritten: bool ``[slots]``, whether :data:`UNWRITTEN` was found there after the backward pass.

        Raises:
            GradientMissing: names the tensors that it did not reach.
        """
        if bool(unwritten.any()):
            places = self._adapters.layout.places
            names = [places[i].name for i in unwritten.nonzero().flatten().tolist()]
            raise GradientMissing(
                f"the backward pass wrote no gradient for {len(names)} of {len(places)} trained tensors (first: "
                f"{names[0]}): the model does not use them, or something between them and the loss blocks gradients; "
                "leave them out (exclude_modules) or remove what blocks"
            )
