"""The secure generator on CUDA devices: the library that setup.py builds where nvcc and a torch with CUDA are there.

A device is trusted only after it has reproduced, bit for bit, what the processor makes of a fixed key; otherwise the
noise is drawn on the processor and copied.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

import ffalora_kernels
from ffalora_kernels import dispatch

_LIBRARY = Path(ffalora_kernels.__file__).parent / "_cuda_noise.so"
_WORDS = 11  # eight of key, three of nonce
_CHECKED = 4097


@cache
def _launcher() -> Callable[..., int] | None:
    """The C function that launches the kernel, or None where the library was not built or does not load."""
    try:
        launch = ctypes.CDLL(str(_LIBRARY)).ffalora_launch_secure_normals
    except OSError:
        return None
    launch.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_void_p, ctypes.c_void_p]
    launch.restype = ctypes.c_int
    return launch


@cache
def usable(index: int) -> bool:
    """Whether CUDA device ``index`` has the library and reproduces the processor's stream."""
    module, _ = dispatch.load("cpp")
    if _launcher() is None or module is None:
        return False
    words = list(range(1, _WORDS + 1))
    expected = torch.linspace(-1, 1, _CHECKED, dtype=torch.float64)
    found = expected.to(f"cuda:{index}")
    _launch(found, 1.5, (ctypes.c_uint32 * _WORDS)(*words))
    module._cpu.add_normals_of_key(words[:8], words[8:], 0, expected.data_ptr(), _CHECKED, 1.5, 1)
    return torch.equal(found.cpu(), expected)


def add(numbers: Tensor, std: float) -> None:
    """Adds ``std·z`` to contiguous float64 numbers on a usable CUDA device, with a fresh key of the operating system.

    Raises:
        RuntimeError: the launch failed, or more numbers than one key serves (2³³).
    """
    key = (ctypes.c_uint32 * _WORDS).from_buffer(bytearray(os.urandom(4 * _WORDS)))
    try:
        _launch(numbers, std, key)
    finally:
        ctypes.memset(key, 0, ctypes.sizeof(key))


def _launch(numbers: Tensor, std: float, key: ctypes.Array) -> None:
    launch = _launcher()
    if launch is None:
        raise RuntimeError(f"{_LIBRARY.name} is not built; it needs nvcc and a torch with CUDA at build time")
    with torch.cuda.device(numbers.device):
        stream = torch.cuda.current_stream(numbers.device).cuda_stream
        error = launch(numbers.data_ptr(), numbers.numel(), std, ctypes.addressof(key), stream)
    if error != 0:
        raise RuntimeError(
            f"secure noise on {numbers.device} failed with CUDA error {error} for {numbers.numel()} numbers"
        )
