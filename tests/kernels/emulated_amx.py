"""AMX's instructions for a processor that lacks them: ``amx.c`` executes them where the processor refuses to."""

import ctypes
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from ffalora_kernels import _cpu

COUNTED = ("configured", "released", "zeroed", "loaded", "stored", "multiplied")


@cache
def library() -> ctypes.CDLL:
    compiler = shutil.which("gcc")
    if sys.platform != "linux" or platform.machine() != "x86_64" or compiler is None:
        pytest.skip("the emulator of AMX is for Linux on x86-64 and needs gcc")
    folder = tempfile.mkdtemp()
    built = Path(folder) / "amx.so"
    flags = ["-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, "-o", built, Path(__file__).with_name("amx.c"), "-lm"], check=True)
    loaded = ctypes.CDLL(str(built))
    shutil.rmtree(folder)
    return loaded


@contextmanager
def amx() -> Iterator[ctypes.Array]:
    """The kernels take AMX's forms inside; counts of what was emulated (zeros where the processor has AMX)."""
    emulator = library()
    if not _cpu.set_amx(True):
        pytest.skip("the extension was built by a compiler whose builds have no AMX")
    assert emulator.emulate() == 0
    try:
        yield (ctypes.c_long * len(COUNTED)).in_dll(emulator, "counters")
    finally:
        _cpu.set_amx(False)
        assert emulator.leave() == 0
