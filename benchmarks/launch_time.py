"""Host time of a call of each Triton operation, without a GPU: python benchmarks/launch_time.py

Launchers and Triton's own launcher run as on a GPU and end in a stub driver (``emulator/driver.py``), so that what is
timed is Python: checks, plans, workspaces, binding of arguments. The vendor's driver, a few microseconds a launch, and
whether the device has caught up, are not in it. Tensors are on the CPU, whose allocator answers instead of CUDA's.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
from collections.abc import Callable

import torch
from emulator.driver import stub_driver

import ffalora_kernels as ffk
from ffalora_kernels import Segments

CALLS = 50


def operations() -> dict[str, Callable[[], object]]:
    """One call of each operation on a small batch: a layer of 1,024 out-features, rank 8, bfloat16."""
    s, t, n, r = 4, 16, 1024, 8
    segments, p = Segments.uniform(s, t), n * r
    dy, h, b = torch.randn(s * t, n).bfloat16(), torch.randn(s * t, r).bfloat16(), torch.zeros(1, n, r).bfloat16()
    arena, squares = torch.zeros(s, p), torch.zeros(s, 1).double()
    total, limit, columns = torch.zeros(1, p).double(), torch.ones(1, 1).double(), torch.tensor([0, p]).int()
    state, one, ids = torch.zeros(1, p), torch.ones(1).double(), torch.zeros(1).long()
    return {
        "expand_": lambda: ffk.expand_(dy, h, b, segments, 0.0),
        "backward": lambda: ffk.backward(dy, h, b, segments, 1.0, arena, 0, squares),
        "outer": lambda: ffk.outer(h, dy, segments, 1.0, arena, 0, squares),
        "clip_reduce_": lambda: ffk.clip_reduce_(total, arena, segments.client, limit, columns, squares),
        "privatize_step_": lambda: ffk.privatize_step_(
            state, total, client_id=ids, step=ids, noise_std=one, denominator=one, lr=one, key=1
        ),
    }


def measure(rounds: int) -> dict[str, tuple[float, int]]:
    """Median microseconds of a call, and its launches, by operation; operations take turns in a fresh order."""
    launches: list[str] = []
    times: dict[str, list[float]] = {}
    with stub_driver("sm_90", lambda kernel, *_: launches.append(kernel.fn.__name__)), ffk.use_backend("triton"):
        calls = operations()
        counts = {}
        for name, call in calls.items():
            call()
            launches.clear()
            call()
            counts[name] = len(launches)
        gc.disable()
        for _ in range(rounds):
            for name in random.sample(list(calls), len(calls)):
                started = time.thread_time()
                for _ in range(CALLS):
                    calls[name]()
                times.setdefault(name, []).append((time.thread_time() - started) / CALLS * 1e6)
            launches.clear()
            gc.collect()
        gc.enable()
    return {name: (statistics.median(times[name]), counts[name]) for name in calls}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help=f"of {CALLS} calls each [40]")
    for name, (microseconds, launches) in measure(parser.parse_args().rounds).items():
        print(f"{name:16} {microseconds:7.1f} us   {launches} launches")


if __name__ == "__main__":
    main()
