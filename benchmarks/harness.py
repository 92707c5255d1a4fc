"""Fair timing: rivals take turns call by call, caches are flushed, inputs rotate, and a wrong result gets no time.

A candidate is a function of a call number; what it returns is ignored. Times are those of the device: on a GPU between
two events behind a queued wait (so that the host's own work is hidden), on a CPU by the clock.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from record import FAILED, OK, OUT_OF_MEMORY, UNAVAILABLE, WRONG
from torch import Tensor

Call = Callable[[int], object]
_FLUSH_BYTES = {"cuda": 2**28, "cpu": 2**26}
#: About a millisecond: a candidate's launches, however many, are queued before the first of them starts.
_QUEUED_CYCLES = 2_000_000


class Unavailable(RuntimeError):
    """A provider cannot run here, and why: not installed, or the model is one that it does not support."""


@dataclass
class Timing:
    """Samples of one candidate, in milliseconds; ``status`` says why there are none."""

    samples: list[float] = field(default_factory=list)
    status: str = OK

    def quantile(self, share: float) -> float:
        """The quantile of the samples, NaN without any."""
        if not self.samples:
            return math.nan
        ordered = sorted(self.samples)
        position = share * (len(ordered) - 1)
        low = math.floor(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (position - low) * (ordered[high] - ordered[low])

    @property
    def median(self) -> float:
        return statistics.median(self.samples) if self.samples else math.nan

    def columns(self) -> dict[str, Any]:
        """What a row of measurements says of the samples."""
        return {
            "status": self.status,
            "ms": self.median,
            "ms_low": self.quantile(0.2),
            "ms_high": self.quantile(0.8),
            "repeats": len(self.samples),
        }


class Clock:
    """Times single calls on a device, each with cold caches (``flush``)."""

    def __init__(self, device: torch.device, flush: bool = True):
        self.device = device
        self._scrub = torch.empty(_FLUSH_BYTES[device.type] // 4, dtype=torch.int32, device=device) if flush else None

    def now(self) -> float:
        """Seconds on the host's clock: what calls on a CPU and the budget of a case are counted by."""
        return time.perf_counter()

    def time(self, call: Call, number: int) -> float:
        """Milliseconds of ``call(number)``."""
        if self._scrub is not None:
            self._scrub.zero_()
        if self.device.type != "cuda":
            started = self.now()
            call(number)
            return 1e3 * (self.now() - started)
        with torch.cuda.device(self.device):  # waits and events are on the current device's stream
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(_QUEUED_CYCLES)
            start.record()
            call(number)
            end.record()
            torch.cuda.synchronize()
        return start.elapsed_time(end)


def interleave(
    candidates: Mapping[str, Call],
    clock: Clock,
    repeats: int,
    seconds: float = math.inf,
    warmup: int = 2,
    seed: int = 0,
) -> dict[str, Timing]:
    """Times all candidates in turn, in a fresh order each round, so that whatever disturbs the machine disturbs all
    alike.

    Args:
        candidates: by name.
        repeats: rounds; fewer where ``seconds`` run out, but at least one.
        warmup: untimed calls of each candidate first (compilation, caches of allocators).

    Returns:
        timings by name; a candidate that ran out of memory or refused says so and does not stop the others.
    """
    timings = {name: Timing() for name in candidates}
    for name, call in candidates.items():
        with survived(timings[name]):
            for number in range(warmup):
                call(number)
            synchronize(clock.device)
    end, order = clock.now() + seconds, random.Random(seed)
    for number in range(repeats):
        if number and clock.now() > end:
            break
        names = [name for name in candidates if timings[name].status == OK]
        for name in order.sample(names, len(names)):
            with survived(timings[name]):
                timings[name].samples.append(clock.time(candidates[name], number))
    return timings


@contextmanager
def survived(timing: Timing) -> Iterator[None]:
    """Within the block an error becomes the timing's status: one provider's failure must not cost the others' times."""
    try:
        yield
    except Unavailable as reason:
        timing.status, timing.samples = f"{UNAVAILABLE}: {reason}", []
    except ModuleNotFoundError as missing:
        package = (missing.name or str(missing)).partition(".")[0]
        timing.status, timing.samples = f"{UNAVAILABLE}: {package} is not installed", []
    except (torch.cuda.OutOfMemoryError, MemoryError):
        timing.status, timing.samples = OUT_OF_MEMORY, []
        release()
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        timing.status, timing.samples = f"{FAILED}: {type(error).__name__}: {first_line[:120]}", []
        release()


def release() -> None:
    """Gives cached memory back, so that one candidate's end is not the next one's beginning: on a GPU torch's, on a
    processor what glibc keeps (see ``ffalora.training.freed_memory``).
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if os.name == "posix" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """RMS(actual - expected)/RMS(expected) in float64, on the device of ``expected``; NaN where ``actual`` has one."""
    if expected.numel() == 0:
        return 0.0
    e = expected.detach().double().reshape(-1)
    a = actual.detach().to(e.device).double().reshape(-1)
    return float((a - e).square().mean().sqrt() / e.square().mean().sqrt().clamp(min=1e-300))


def verdict(error: float, tolerance: float) -> str:
    """'ok', or 'wrong: …' for an error that is not within the tolerance (NaN is not)."""
    return OK if error <= tolerance else f"{WRONG}: error {error:.1e} above {tolerance:.0e}"


def copy_bandwidth(clock: Clock, mebibytes: int = 256, repeats: int = 10) -> float:
    """GB/s of a plain copy, bytes read and written both counted."""
    source = torch.empty(mebibytes * 2**18, dtype=torch.float32, device=clock.device).fill_(1.0)
    target = torch.empty_like(source)
    timing = interleave({"copy": lambda _: target.copy_(source)}, clock, repeats)["copy"]
    return 2 * source.numel() * 4 / timing.median / 1e6


def matmul_rate(clock: Clock, dtype: torch.dtype, size: int = 4096, repeats: int = 5) -> float:
    """TFLOP/s of a square matrix product."""
    a = torch.randn(size, size, device=clock.device).to(dtype)
    b = torch.randn(size, size, device=clock.device).to(dtype)
    timing = interleave({"gemm": lambda _: a @ b}, clock, repeats)["gemm"]
    return 2 * size**3 / timing.median / 1e9


def launch_floor(clock: Clock, repeats: int = 50) -> float:
    """Milliseconds of an operation on one number: nothing can be measured to be faster."""
    one = torch.zeros(1, device=clock.device)
    return interleave({"floor": lambda _: one.add_(1.0)}, clock, repeats)["floor"].median


class PeakMemory:
    """Peak memory of a block in MiB above what was in use before: allocated bytes on a GPU, resident ones on a CPU."""

    mib = math.nan

    def __init__(self, device: torch.device):
        self._device = device

    def __enter__(self) -> PeakMemory:
        release()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            self._before = self._peak = resident_bytes()
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self._peak = max(self._peak, resident_bytes())

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            synchronize(self._device)
            self._peak = torch.cuda.max_memory_allocated(self._device)
        else:
            self._stop.set()
            self._thread.join()
            self._peak = max(self._peak, resident_bytes())
        self.mib = (self._peak - self._before) / 2**20


def recorded_bytes(device: torch.device) -> int:
    """Memory of CUDA graphs, which keep it from one replay to the next: a peak counts it as there before."""
    if device.type != "cuda":
        return 0
    pools = (part for part in torch.cuda.memory_snapshot() if tuple(part.get("segment_pool_id", (0, 0))) != (0, 0))
    return sum(part["total_size"] for part in pools)


def resident_bytes() -> int:
    """Resident memory of this process (Linux; 0 elsewhere)."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0


def peak_resident_bytes() -> int:
    """Peak resident memory of this process so far (Linux; 0 elsewhere). Not ``ru_maxrss``: a parent's peak is in
    that.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
