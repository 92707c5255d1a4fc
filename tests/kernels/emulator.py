"""Runs Triton launches on CPU tensors by emulating the compiled PTX (with development tools beside the project).

``with emulated(90) as reports:`` replaces ``JITFunction.run``; every launch appends ``(kernel name, counts)``. Pointers
are as aligned as the tensors are, so that a kernel may not rely on 16 bytes that a caller's view lacks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

TOOLS = Path(os.environ.get("FFALORA_GPU_TOOLS", Path(__file__).resolve().parents[3] / "shared" / "tools"))
_TYPES = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32",
    torch.int64: "i64", torch.float64: "fp64",
}  # fmt: skip
_SELECT = ("f64", "f64", "pred")


def require_tools() -> None:
    """Skips the test, saying why, where the emulator is not beside the project."""
    if not (TOOLS / "fakegpu.py").exists():
        pytest.skip(f"PTX emulator not found at {TOOLS}; set FFALORA_GPU_TOOLS to run this test")


def interpret(*arguments: str) -> dict:
    """The outcome of interpret.py in a process of its own."""
    require_tools()
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "interpret.py"), *arguments],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def signature(fn, bound: dict) -> tuple[dict, dict, dict]:
    """Types, constants and divisibility attributes that Triton's own launcher would derive from these arguments."""
    types, constants, attributes = {}, {}, {}
    for i, p in enumerate(fn.params):
        v = bound[p.name]
        divisible = False
        if p.is_constexpr or v is None or (isinstance(v, int) and v == 1 and not p.do_not_specialize):
            types[p.name], constants[p.name] = "constexpr", v
        elif isinstance(v, torch.Tensor):
            types[p.name], divisible = "*" + _TYPES[v.dtype], v.data_ptr() % 16 == 0
        elif isinstance(v, int):
            types[p.name] = "i32" if -(2**31) <= v < 2**31 else "i64"
            divisible = v % 16 == 0 and not p.do_not_specialize
        else:
            types[p.name] = "fp32"
        if divisible:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return types, constants, attributes


def compile_like_the_launcher(fn, bound: dict, cap: int, num_warps: int = 4, num_stages: int = 3, **options):
    """The compiled kernel for these arguments, and its signature."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, constants, attributes = signature(fn, bound)
    source = ASTSource(fn=fn, signature=types, constexprs=constants, attrs=attributes)
    options = {"num_warps": num_warps, "num_stages": num_stages, **options}
    return triton.compile(source, target=GPUTarget("cuda", cap, 32), options=options), types


def _with_wide_selects(simulator: type) -> type:
    """The simulator with ``selp.f64`` on immediates right: it takes their value, not their bits, as an integer."""

    class WideSelects(simulator):
        def i_selp(self, x, m):
            if x.mods[-1] != "f64":
                return super().i_selp(x, m)
            yes, no, which = (
                np.broadcast_to(self.val(a, t), (self.T,)) for a, t in zip(x.args[1:], _SELECT, strict=True)
            )
            return self.setr(x.args[0], np.where(which, yes, no).view(np.uint64), m)

    return WideSelects


@contextmanager
def emulated(cap: int = 90, lockstep: bool = False) -> Iterator[list[tuple[str, dict]]]:
    """Within the block ``kernel[grid](…)`` on CPU tensors runs on the emulated sm_80 or sm_90; yields the reports.

    The emulator advances programs together and keeps one queue of asynchronous copies for all of them: that is faithful
    only if all programs take the same path (``lockstep=True``, fast). Otherwise each program is run alone.
    """
    require_tools()
    if str(TOOLS) not in sys.path:
        sys.path.insert(0, str(TOOLS))
    import fakegpu
    import ptxsim
    from triton.runtime.jit import JITFunction

    reports: list[tuple[str, dict]] = []
    names = ("num_warps", "num_stages")

    def run(self, *args, grid, warmup=False, **kwargs):
        options = {k: kwargs.pop(k) for k in names if k in kwargs}
        report = fakegpu.run(self, grid, *args, cap=cap, **options, **kwargs)
        report["programs"] = grid[0]
        reports.append((self.__name__, report))

    stock, compile_before, simulator = JITFunction.run, fakegpu.compile, ptxsim.Sim
    threads = {} if lockstep else {"max_threads": 1}
    JITFunction.run, fakegpu.compile = run, compile_like_the_launcher
    ptxsim.Sim = partial(_with_wide_selects(simulator), **threads)
    try:
        yield reports
    finally:
        JITFunction.run, fakegpu.compile, ptxsim.Sim = stock, compile_before, simulator
