"""An emulator of the PTX that Triton and nvcc make: what a kernel computes, what it touches, without a GPU.

``with emulated(90) as reports:`` runs every Triton launch on CPU tensors on an emulated sm_90. See README.md.
"""

from . import arithmetic, bitwise, tensor_cores, transfers, warps  # noqa: F401 (they enter their instructions)
from .machine import Launch
from .memory import Device
from .parser import PTXError, parse

__all__ = ["Device", "Launch", "PTXError", "parse"]
