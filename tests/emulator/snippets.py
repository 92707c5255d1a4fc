"""Small PTX programs around a few instructions, and what they leave behind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from emulator import Device, Launch, parse

#: Registers by type: %p0 …, %h0 … (16 bits), %r0 … (32), %d0 … (64), %f0 … and %g0 … (float32, float64).
REGISTERS = """
    .reg .pred %p<8>;
    .reg .b16 %h<16>;
    .reg .b32 %r<32>;
    .reg .b64 %d<32>;
    .reg .f32 %f<16>;
    .reg .f64 %g<16>;
"""


def kernel_text(body: str, parameters: str = ".param .u64 out") -> str:
    """A module with one kernel; ``%d0`` holds the address ``out``, ``%r0`` the thread, ``%r1`` the program."""
    return f"""
.version 8.0
.target sm_80
.visible .entry snippet({parameters})
{{
    {REGISTERS}
    .shared .align 16 .b8 buffer[1024];
    ld.param.u64 %d0, [out];
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, %ctaid.x;
    {body}
    ret;
}}
"""


def launch(
    body: str, out: np.ndarray, programs: int = 1, threads: int = 32, parameters: str = ".param .u64 out",
    arguments: Sequence[object] = (), inputs: Sequence[np.ndarray] = (),
) -> tuple[np.ndarray, Launch]:  # fmt: skip
    """Runs a body; what ``out`` holds afterwards, and the launch. Addresses of ``inputs`` follow that of ``out``."""
    device = Device(1 << 18)
    addresses = [device.allocate(array, f"array {at}") for at, array in enumerate((out, *inputs))]
    (kernel,) = parse(kernel_text(body, parameters)).values()
    done = Launch(kernel, device, [*addresses, *arguments], (programs,), threads)
    return device.read(addresses[0], out.shape, out.dtype), done


def stored(kind: str, register: str) -> str:
    """Stores a register to ``out[thread]``."""
    width = int(kind[1:]) // 8
    return f"""
    mul.wide.u32 %d30, %r0, {width};
    add.s64 %d31, %d0, %d30;
    st.global.{kind} [%d31], {register};
"""
