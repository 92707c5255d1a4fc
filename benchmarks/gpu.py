"""Everything there is to measure on one GPU, in one command: python benchmarks/gpu.py

Prints device and versions, measures copy bandwidth and matrix products, runs the correctness gate, times every
operation and whole private steps against rivals, compares bytes with hardware counters where ncu is installed, appends
rows to a CSV, draws plots and prints a short table. Sections can be run in several sittings (--section); a case that
the output holds already, of this commit and device, is not measured again (--again does). No network. Operations need
torch and triton alone; layers, models and plots need what the package depends on, and rivals are measured where they
are installed: rows say what was missing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

import checkout  # noqa: F401
import plan
import torch
from harness import copy_bandwidth, launch_floor, matmul_rate, release
from op_bench import run_case
from record import Row
from report import short_table
from session import Session, add_options, check_results, exit_status, measure_steps, open_session, run_sections

SECTIONS = ("device", "gate", "ops", "layer", "steps", "memory", "counters", "plots")
#: How the sections divide the minutes among them.
SHARES = {"ops": 0.42, "layer": 0.08, "steps": 0.28, "memory": 0.12, "counters": 0.1}


def measure_device(session: Session) -> None:
    """Copy bandwidth, rate of matrix products and launch floor: what all other numbers are held against."""
    size = 16 if session.quick else 1024
    session.copy_gb_per_s = copy_bandwidth(session.clock, size)
    floor_ms = launch_floor(session.clock)
    dtypes = [torch.float32] if session.quick else [torch.bfloat16, torch.float32]
    rates = {
        str(d).removeprefix("torch."): matmul_rate(session.clock, d, 256 if session.quick else 8192) for d in dtypes
    }
    print(f"  copy {session.copy_gb_per_s:.0f} GB/s, launch floor {1e3 * floor_ms:.1f} us, TFLOP/s {rates}")
    config = {"tflops": {name: round(rate, 2) for name, rate in rates.items()}, "launch_floor_ms": floor_ms}
    rows = [Row("device", "copy", "torch", gb_per_s=session.copy_gb_per_s, copy_share=1.0, config=config)]
    session.keep(rows)


def measure_ops(session: Session) -> None:
    """Every operation on every shape."""
    for case in plan.ops(session.device, session.quick):
        made = case() if session.end > time.monotonic() else None
        if made is None:
            print("  no time left for ops; run again to go on")
            return
        if session.wants("ops", made.name, list(made.candidates)):
            repeats, seconds = (3, 1.0) if session.quick else (30, 2.0)
            session.keep(run_case(made, "ops", session.clock, session.copy_gb_per_s, repeats, seconds, session.gate))
        del made
        release()


def measure_layers(session: Session) -> None:
    """Private steps of a single adapted linear layer."""
    measure_steps(session, "layer", plan.layers(session.device, session.quick), 3 if session.quick else 20, 20.0)


def measure_models(session: Session) -> None:
    """Private steps of whole models."""
    measure_steps(session, "steps", plan.models(session.device, session.quick), 2 if session.quick else 6, 45.0)


def measure_memory(session: Session) -> None:
    """Peak memory of a step over the batch size."""
    measure_steps(session, "memory", plan.batches(session.device, session.quick), 1, 5.0)


def count_bytes(session: Session) -> None:
    """Bytes of the kernels by hardware counters."""
    from counters import measure

    for row in measure(session.device, session.gate, lambda: session.end > time.monotonic()):
        session.keep([row])


def draw_plots(session: Session) -> None:
    """Roofline, speed-ups and memory, from the output alone."""
    if find_spec("matplotlib") is None:
        print("  matplotlib is not installed; draw them elsewhere: python benchmarks/plot.py FILE.csv")
        return
    from plot import draw

    for path in draw(session.output, session.output.parent):
        print(f"  {path}")


RUN: dict[str, Callable[[Session], None]] = {
    "device": measure_device,
    "gate": check_results,
    "ops": measure_ops,
    "layer": measure_layers,
    "steps": measure_models,
    "memory": measure_memory,
    "counters": count_bytes,
    "plots": draw_plots,
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the chosen sections; 1 if the gate is red or a result of ours was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, …, or cpu (to try the script itself)")
    add_options(parser, "runs/bench/gpu.csv", 8.0, SECTIONS)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(
            f"--device {options.device}: this machine has no CUDA device; try the script with --device cpu --quick"
        )
    session = open_session(options, device)
    run_sections(session, RUN, options.section, SHARES)
    print(short_table(session.rows))
    return exit_status(session)


if __name__ == "__main__":
    sys.exit(main())
