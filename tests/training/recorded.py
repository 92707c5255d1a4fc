"""What a pass may not do while it is recorded, without a device to record it."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class HostRead(RuntimeError):
    """A number left the device while a pass was recorded."""


class NoHostReads(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "unique_dim"):
            raise HostRead(name)
        return func(*args, **(kwargs or {}))
