"""The arithmetic peak of one core: products and sums that stay in registers, by AVX-512's FMA and its bfloat16 dot.

The loops are compiled when they are asked for, since no library has them: torch's own float32 product does not reach
this rate on every processor. Nothing is measured where there is no compiler or no such instruction.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_ROUNDS, _CHAINS = 4000, 16
#: By name: the flag of the processor, the instruction, and how many products and sums one of it makes.
_LOOPS = {"float32": ("avx512f", "vfmadd231ps", 32), "bfloat16": ("avx512_bf16", "vdpbf16ps", 64)}


def _source(instruction: str) -> str:
    """A loop over independent chains of the instruction, enough of them to hide its latency."""
    body = "\\n".join(f"{instruction} %%zmm30, %%zmm31, %%zmm{chain}" for chain in range(_CHAINS))
    clobbered = ", ".join(f'"xmm{register}"' for register in range(32))
    return (
        f'void loop(long rounds) {{ __asm__ volatile("1:\\n{body}\\ndec %0\\njnz 1b" '
        f': "+r"(rounds) : : "cc", {clobbered}); }}\n'
    )


def gflop_per_s(seconds: float = 0.3) -> dict[str, float]:
    """GFLOP/s of one core by dtype, the best of many short loops; without the dtypes that cannot be measured here."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    flags = set(_CPUINFO.read_text().split()) if _CPUINFO.exists() else set()
    rates = {}
    for name, (flag, instruction, flops) in _LOOPS.items():
        if compiler is None or flag not in flags:
            continue
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder, "loop.c"), Path(folder, "loop.so")
            source.write_text(_source(instruction))
            command = [compiler, "-O1", "-mavx512f", "-shared", "-fPIC", str(source), "-o", str(library)]
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
