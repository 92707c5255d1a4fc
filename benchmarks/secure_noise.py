"""Secure Gaussians a second on one core: the C++ generator, its parts, the fallback, and torch's insecure generator.

``python benchmarks/secure_noise.py`` prints a table and appends to benchmarks/data/secure_noise.csv. A secure number is
the sum of four normals, each pair of which takes 16 bytes of ChaCha20.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from harness import Clock, interleave
from record import Row, append, stamp

from ffalora.privacy import secure_noise
from ffalora_kernels import dispatch

CSV = Path(__file__).parent / "data" / "secure_noise.csv"


def candidates(count: int) -> dict:
    """What is timed, by name; each call makes ``count`` numbers (the key stream: their 32 bytes each)."""
    numbers = torch.zeros(count, dtype=torch.float64)
    timed = {
        "torch.randn float64 (not secure)": lambda _: numbers.normal_(),
        "os.urandom, sum of four": lambda _: secure_noise._add_from_system(numbers, 1.0),
    }
    module, _ = dispatch.load("cpp")
    if module is not None:
        stream, cpu = torch.empty(count * 8, dtype=torch.int32), module._cpu
        timed["C++ ChaCha20, sum of four"] = lambda _: secure_noise._add(numbers, 1.0)
        timed["C++ key stream alone"] = lambda _: cpu.key_stream([1] * 8, [0] * 3, 0, count // 2, stream.data_ptr())
    return timed


def main() -> None:
    """Times everything in turn on one thread and appends the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2_000_000, help="numbers a call")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--out", type=Path, default=CSV)
    options = parser.parse_args()
    torch.set_num_threads(1)
    clock = Clock(torch.device("cpu"), flush=False)
    rows = []
    for name, timing in interleave(candidates(options.count), clock, options.repeats).items():
        rate = options.count / timing.median / 1e3
        config = {"million_a_second": round(rate, 1), "count": options.count, "load": round(os.getloadavg()[0], 1)}
        rows.append(
            Row("secure_noise", f"{options.count} numbers, one thread", name, config=config, **timing.columns())
        )
        low, high = (options.count / timing.quantile(q) / 1e3 for q in (0.8, 0.2))
        print(f"{name:36} {rate:7.1f} million/s ({low:.1f} … {high:.1f})")
    append(options.out, [stamp(row, clock.device) for row in rows])


if __name__ == "__main__":
    main()
