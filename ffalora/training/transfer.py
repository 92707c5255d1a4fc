"""Tensors between the host and its device, without either waiting for the other before it has to."""

from __future__ import annotations

import torch
from torch import Tensor


class Sent:
    """Tensors on their way to the host, behind the work that is queued now and before whatever is queued later."""

    def __init__(self, *tensors: Tensor):
        self._event: torch.cuda.Event | None = None
        self._host = [_sent(tensor) for tensor in tensors]
        if tensors and tensors[0].device.type == "cuda":
            self._event = torch.cuda.current_stream(tensors[0].device).record_event()

    def read(self) -> list[Tensor]:
        """The tensors on the CPU; waits until they are there."""
        if self._event is not None:
            self._event.synchronize()
        return self._host


def _sent(value: Tensor) -> Tensor:
    if value.device.type != "cuda":
        return value.cpu()
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's on the device: behind the work that is queued there, without waiting for it."""
    if device.type != "cuda":
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)


def copy_(buffer: Tensor, value: Tensor) -> None:
    """Copies a tensor into a buffer: from pinned memory where that is on a GPU, so that the host does not wait."""
    pin = buffer.device.type == "cuda" and value.device.type == "cpu"
    buffer.copy_(value.pin_memory() if pin else value, non_blocking=True)
