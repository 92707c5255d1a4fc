"""What the system says of its processor (Linux: ``/proc/cpuinfo``; elsewhere nothing)."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def processor() -> dict[str, str]:
    """Of the first core: ``vendor_id``, ``model name``, ``cpu family``, ``model`` and more, where they are told."""
    path = Path("/proc/cpuinfo")
    first = path.read_text(errors="replace").partition("\n\n")[0] if path.exists() else ""
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def is_amd() -> bool:
    """Whether AMD made it."""
    return processor().get("vendor_id") == "AuthenticAMD"


def is_intel() -> bool:
    """Whether Intel made it."""
    return processor().get("vendor_id") == "GenuineIntel"


def halves_wide_vectors() -> bool:
    """Whether it computes 512-bit vectors in two halves: AMD's Zen 4, which is family 25 with AVX-512."""
    return is_amd() and processor().get("cpu family") == "25"
