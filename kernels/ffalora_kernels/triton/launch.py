"""What every launcher of this package needs: which part it launches on, whether it can, and hints about strides.

Strides reach a kernel as ``units * UNIT`` with a constexpr UNIT: Triton's own specialisation knows divisibility by 16
only, and a row pitch of 1000 or 24 elements would otherwise lose its 16-byte (8-byte) accesses. A false hint would read
out of bounds, so UNIT is computed from the stride itself, never assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps

import torch
from torch import Tensor
from triton.runtime.driver import driver
from triton.runtime.interpreter import InterpretedFunction

#: What a CPU tensor (interpreter, emulator) is treated as.
DEFAULT_ARCHITECTURE = "sm_90"
#: 128 rows of a tile times this stay below 2**31.
MAX_PITCH = 2**24
_UNITS = (16, 8, 4, 2, 1)


def check_device(op: str, kernel: object, t: Tensor) -> None:
    """Raises RuntimeError unless ``kernel`` can run on the device of ``t``.

    CUDA tensors are served, and others by Triton's interpreter or a driver of Triton's that launches on their device.
    """
    if t.device.type != "cuda" and not isinstance(kernel, InterpretedFunction) and t.device.type != _driven():
        raise RuntimeError(
            f"{op}: the triton backend serves CUDA tensors, got a tensor on {t.device}; move it to a GPU, choose the"
            " backend 'cpp' or 'reference', or set TRITON_INTERPRET=1 before the first import of triton"
        )


def _driven() -> str | None:
    """The type of device that Triton launches on here; None without one."""
    try:
        return driver.active.get_active_torch_device().type
    except RuntimeError:
        return None


def on_its_device(launcher: Callable) -> Callable:
    """The launcher with its first tensor's device made the current one, which is where Triton launches."""

    @wraps(launcher)
    def run(first: Tensor, *rest, **fields):
        if first.device.type != "cuda" or first.device.index == torch.cuda.current_device():
            return launcher(first, *rest, **fields)
        with torch.cuda.device(first.device):
            return launcher(first, *rest, **fields)

    return run


def check_dtype(op: str, t: Tensor) -> None:
    """Raises TypeError for float64 activations, which only the reference takes."""
    if t.dtype == torch.float64:
        raise TypeError(
            f"{op}: the triton backend takes float32, bfloat16 or float16, got {t.dtype}; use backend 'reference'"
        )


@cache
def _architecture_of(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def architecture(device: torch.device) -> str:
    """Name of the part, e.g. 'sm_90' or 'gfx942'; the default one for CPU tensors under interpreter or emulator."""
    if device.type != "cuda":
        return DEFAULT_ARCHITECTURE
    return _architecture_of(torch.cuda.current_device() if device.index is None else device.index)


@cache
def units(stride: int) -> tuple[int, int]:
    """``(stride // UNIT, UNIT)`` with the largest UNIT in 16, 8, 4, 2, 1 that divides the stride."""
    unit = next(u for u in _UNITS if stride % u == 0)
    return stride // unit, unit


def row_units(op: str, name: str, t: Tensor) -> tuple[int, int]:
    """:func:`units` of the row pitch of activations, whose offsets inside a tile of rows are 32-bit.

    Raises:
        ValueError: rows are 2**24 elements apart or more.
    """
    pitch = t.stride(0)
    if pitch < MAX_PITCH:
        return units(pitch)
    if t.shape[0] > 1:
        raise ValueError(f"{op}: rows of {name} are {pitch} elements apart, not below {MAX_PITCH}; call .contiguous()")
    return units(0)


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def padded_rank(r: int) -> int:
    """The power of two, at least 16, that a rank is padded to inside a kernel (tensor cores reduce over 16)."""
    return max(16, 1 << (r - 1).bit_length())
