"""The arithmetic peak of one core: products and sums that stay in registers, by the widest instruction it has for them.

The loops are compiled when they are asked for, since no library has them: torch's own float32 product does not reach
this rate on every processor. Nothing is measured where there is no compiler or no such instruction; nor in bfloat16 on
parts with AMX, whose tiles have a peak of their own.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from ffalora_kernels.cpuinfo import processor

_ROUNDS, _CHAINS = 4000, 14
#: By dtype, the best first: flags of the processor that are needed, flags that it must not have, the instruction, its
#: registers, and how many products and sums one of it makes.
_LOOPS = {
    "float32": [
        ({"avx512f"}, set(), "vfmadd231ps", "zmm", 32),
        ({"avx2", "fma"}, set(), "vfmadd231ps", "ymm", 16),
    ],
    "bfloat16": [({"avx512_bf16"}, {"amx_bf16"}, "vdpbf16ps", "zmm", 64)],
}


def loops(flags: set[str]) -> dict[str, tuple[str, str, int]]:
    """Instruction, registers and its products and sums by dtype, for a processor with these flags."""
    found = {}
    for name, ways in _LOOPS.items():
        for needed, without, *loop in ways:
            if needed <= flags and not without & flags:
                found[name] = tuple(loop)
                break
    return found


def source(instruction: str, registers: str) -> str:
    """A loop over independent chains of the instruction, enough of them to hide its latency.

    All registers start at zero: what they held before may be subnormal numbers, with which some processors take a
    hundred times as long.
    """
    used = [*range(_CHAINS), 14, 15]
    zeros = "\\n".join(f"vxorps %%xmm{register}, %%xmm{register}, %%xmm{register}" for register in used)
    body = "\\n".join(
        f"{instruction} %%{registers}14, %%{registers}15, %%{registers}{chain}" for chain in range(_CHAINS)
    )
    clobbered = ", ".join(f'"xmm{register}"' for register in used)
    return (
        f'void loop(long rounds) {{ __asm__ volatile("{zeros}\\n1:\\n{body}\\ndec %0\\njnz 1b" '
        f': "+r"(rounds) : : "cc", {clobbered}); }}\n'
    )


def gflop_per_s(seconds: float = 0.3) -> dict[str, float]:
    """GFLOP/s of one core by dtype, the best of many short loops; without the dtypes that cannot be measured here."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    flags = set(processor().get("flags", "").split())
    rates = {}
    for name, (instruction, registers, flops) in loops(flags).items() if compiler else ():
        with tempfile.TemporaryDirectory() as folder:
            text, library = Path(folder, "loop.c"), Path(folder, "loop.so")
            text.write_text(source(instruction, registers))
            command = [compiler, "-O1", "-shared", "-fPIC", str(text), "-o", str(library)]
            if subprocess.run(command, capture_output=True).returncode != 0:
                continue
            loop = ctypes.CDLL(str(library)).loop
        loop.argtypes, loop.restype = [ctypes.c_long], None
        rates[name] = flops * _CHAINS * _ROUNDS / _shortest(lambda: loop(_ROUNDS), seconds) / 1e9  # noqa: B023
    return rates


def _shortest(call, seconds: float) -> float:
    """Seconds of the fastest of as many calls as fit."""
    best, end = float("inf"), time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        call()
        best = min(best, time.perf_counter() - started)
    return best
