"""Memory that a step frees stays with the process, so that the next step does not take every page anew."""

from __future__ import annotations

import ctypes
import os

#: Whoever sets one of these has chosen.
CHOSEN_BY = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Bytes: as many as an int holds; the largest block that glibc takes from its heap.
_TRIM, _MMAP = 2**31 - 1, 2**25


def keep_freed_memory() -> bool:
    """Tells glibc to keep up to 2 GiB that are free at the end of its heap; returns whether it did.

    A step frees its activations all at once, glibc hands them back to the system, and the system clears each page again
    when the next step touches it: 30,000 to 40,000 page faults a step of MiniLM with all linears adapted and weights
    merged, 5% of its time. The most memory that a process has at once stays as it is. Other C libraries, and processes
    whose user has set one of ``CHOSEN_BY``, are left alone.
    """
    if os.name != "posix" or any(name in os.environ for name in CHOSEN_BY):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP)) and bool(mallopt(_M_TRIM_THRESHOLD, _TRIM))
