"""Everything there is to measure on one GPU, in one command: python benchmarks/gpu.py

Prints device and versions, measures copy bandwidth and matrix products, runs the correctness gate, times every
operation and whole private steps against rivals, compares bytes with hardware counters where ncu is installed, appends
rows to a CSV, draws plots and prints a short table. Sections can be run in several sittings (--section); a case that
the output holds already, of this commit and device, is not measured again (--again does). Needs torch and triton; no
network.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import plan
import torch
from gate import run_gate
from harness import Clock, copy_bandwidth, launch_floor, matmul_rate, release
from op_bench import run_case
from record import OK, Row, append, commit, device_name, latest, read, stamp, versions
from report import short_table
from step_bench import run_steps

SECTIONS = ("device", "gate", "ops", "layer", "steps", "memory", "counters", "plots")


@dataclass
class Session:
    """One sitting: where rows go, what is done already, and how long is left."""

    device: torch.device
    output: Path
    quick: bool
    again: bool
    end: float
    gate: str = "not run"
    copy_gb_per_s: float = 1.0
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        here = device_name(self.device), commit()
        self._done = {} if self.again else latest([r for r in read(self.output) if (r.device, r.commit) == here])
        self.clock = Clock(self.device)
        self.steps_clock = Clock(self.device, flush=False)

    def wants(self, section: str, case: str, providers: list[str]) -> bool:
        """Whether a case is missing for one of its providers and there is time for it."""
        if all((section, case, provider) in self._done for provider in providers):
            self.rows += [self._done[section, case, provider] for provider in providers]
            return False
        if time.monotonic() > self.end:
            print(f"  no time left for {section}: {case}; run again to go on")
            return False
        return True

    def keep(self, rows: list[Row]) -> None:
        """Appends rows to the output and prints them."""
        stamped = [stamp(row, self.device) for row in rows]
        append(self.output, stamped)
        self.rows += stamped
        for row in stamped:
            speed = f"{row.gb_per_s:8.1f} GB/s {100 * row.copy_share:4.0f}%" if row.gb_per_s == row.gb_per_s else ""
            text = f"{row.ms:9.3f} ms {speed}" if row.status == OK else row.status
            print(f"  {row.case:<58} {row.provider:<28} {text}", flush=True)


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


def check_results(session: Session) -> None:
    """The correctness gate; a red one is recorded in every row that follows."""
    failures, count = run_gate(session.device, quick=session.quick)
    session.gate = "red" if failures else "green"
    print(f"  {count - len(failures)} of {count} cases agree with float64: {session.gate}")
    for name, message in failures.items():
        print(f"  FAILED {name}: {message}")
    session.keep([Row("gate", "tests/kernels/cases", "ours", gate=session.gate, config={"failed": sorted(failures)})])


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


def _measure_steps(session: Session, section: str, jobs: list[tuple], repeats: int, seconds: float) -> None:
    for work, names in jobs:
        if session.wants(section, work.name, names):
            session.keep(run_steps(work, names, section, session.steps_clock, repeats, seconds, session.gate))
        release()


def measure_layers(session: Session) -> None:
    """Private steps of a single adapted linear layer."""
    _measure_steps(session, "layer", plan.layers(session.device, session.quick), 3 if session.quick else 20, 20.0)


def measure_steps(session: Session) -> None:
    """Private steps of whole models."""
    _measure_steps(session, "steps", plan.models(session.device, session.quick), 2 if session.quick else 10, 60.0)


def measure_memory(session: Session) -> None:
    """Peak memory of a step over the batch size."""
    _measure_steps(session, "memory", plan.batches(session.device, session.quick), 1, 5.0)


def count_bytes(session: Session) -> None:
    """Bytes of the kernels by hardware counters."""
    from counters import measure

    session.keep(measure(session.device, session.gate))


def draw_plots(session: Session) -> None:
    """Roofline, speed-ups and memory, from the output alone."""
    from plot import draw

    for path in draw(session.output, session.output.parent):
        print(f"  {path}")


RUN: dict[str, Callable[[Session], None]] = {
    "device": measure_device,
    "gate": check_results,
    "ops": measure_ops,
    "layer": measure_layers,
    "steps": measure_steps,
    "memory": measure_memory,
    "counters": count_bytes,
    "plots": draw_plots,
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the chosen sections; 1 if the gate is red or a result of ours was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, …, or cpu (to try the script itself)")
    parser.add_argument("--section", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="run these only")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/gpu.csv"), help="rows are appended to this CSV")
    parser.add_argument("--minutes", type=float, default=8.0, help="start no further case after this long")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does everything work?")
    parser.add_argument("--again", action="store_true", help="measure cases again that the output holds already")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(
            f"--device {options.device}: this machine has no CUDA device; --device cpu --quick tries the script"
        )
    session = Session(device, options.output, options.quick, options.again, time.monotonic() + 60 * options.minutes)
    print(f"{device_name(device)}\n{versions()}\ncommit {commit()}, rows go to {options.output}")
    needed = [s for s in ("device", "gate") if s not in options.section and set(options.section) - {"plots"}]
    for section in SECTIONS:
        if section in options.section or section in needed:
            print(f"{section}", flush=True)
            RUN[section](session)
    print(short_table(session.rows))
    wrong = [
        row for row in session.rows if row.provider.startswith("ours") and row.status.startswith(("wrong", "failed"))
    ]
    return int(session.gate == "red" or bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
