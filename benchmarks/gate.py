"""The correctness gate: the cases of the kernels' tests, on this device, with fresh random inputs and poisoned
buffers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from ffalora_kernels import explain

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "kernels"))
from cases import CASES


def backend_of(device: torch.device) -> str:
    """The backend that serves a device: triton, or cpp (the reference where that is not built)."""
    if device.type == "cuda":
        return "triton"
    return "cpp" if explain()["cpp"] == "available" else "reference"


def run_gate(device: torch.device, quick: bool = False) -> tuple[dict[str, str], int]:
    """Runs every case (a third of them when quick). Returns the failures by name, and how many cases there were."""
    names = list(CASES)[:: 3 if quick else 1]
    failures = {}
    with fresh_inputs(), poisoned_buffers():
        for name in names:
            try:
                CASES[name](backend_of(device), device=str(device))
            except Exception as error:
                failures[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    return failures, len(names)


@contextmanager
def fresh_inputs(seed: int | None = None) -> Iterator[int]:
    """Within the block ``torch.manual_seed`` starts from a seed of this moment (or the given one) instead."""
    fresh = time.time_ns() % 2**32 if seed is None else seed
    seeded = torch.manual_seed
    with mock.patch.object(torch, "manual_seed", lambda value: seeded((fresh + value) % 2**63)):
        yield fresh


@contextmanager
def poisoned_buffers() -> Iterator[None]:
    """Within the block ``torch.empty`` is filled with NaN, so that a number nobody wrote is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
