"""The OpenMP runtime that torch has loaded, made visible to the C++ extension.

The extension is linked to no runtime, since a second one would fight torch's for the cores. torch's packages for x86
load theirs for everybody, those for Arm for torch alone.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path


def share_openmp() -> None:
    """Lets libraries that are loaded later use the runtime; does nothing where they can, or where there is none."""
    if sys.platform != "linux" or hasattr(ctypes.CDLL(None), "GOMP_parallel"):
        return
    for path in sorted(_loaded_runtimes(), key=lambda path: "torch" not in path):  # torch's own first
        try:
            ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_GLOBAL | os.RTLD_NOLOAD)
        except OSError:  # mapped by something that is no loader
            continue
        return


def _loaded_runtimes() -> set[str]:
    """Paths of libraries of the process that are called libgomp or libomp."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return set()
    paths = {columns[5] for line in maps.splitlines() if len(columns := line.split(maxsplit=5)) == 6}
    return {path for path in paths if Path(path).name.startswith(("libgomp", "libomp"))}
