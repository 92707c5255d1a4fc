"""The correctness gate: the cases of the kernels' tests, on this device, with fresh random inputs and poisoned
buffers; and every benchmarked shape once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import checkout  # noqa: F401
import torch
from record import Row, append, stamp

from ffalora_kernels import explain

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "kernels"))
from cases import CASES

GATE_CASE = "tests/kernels/cases"
#: Device memory of one process: its context, and the largest shape with its float64 result.
PROCESS_BYTES = 3 * 2**30


def backend_of(device: torch.device) -> str:
    """The backend that serves a device: triton, or cpp (the reference where that is not built)."""
    if device.type == "cuda":
        return "triton"
    return "cpp" if explain()["cpp"] == "available" else "reference"


def case_names(quick: bool) -> list[str]:
    """The gate's cases; a third of them when quick."""
    return list(CASES)[:: 3 if quick else 1]


def run_gate(device: torch.device, names: Sequence[str]) -> tuple[dict[str, str], int]:
    """Runs cases by name. Returns the failures by name, and how many cases there were."""
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


def check_shapes(device: torch.device, quick: bool, share: slice) -> dict[str, str]:
    """Runs every benchmarked shape once, for its result and so that it is compiled; the failures by name."""
    import plan
    from harness import release
    from op_bench import check

    failures = {}
    for make in list(plan.ops(device, quick, copies=1))[share]:
        case = make()
        status, _ = check(case, case.candidates["ours"])
        if status != "ok":
            failures[case.name] = status
        del case
        release()
    return failures


def fitting(device: torch.device, processes: int) -> int:
    """As many of the processes as the device has free memory for, at least one."""
    if device.type != "cuda":
        return processes
    return max(1, min(processes, torch.cuda.mem_get_info(device)[0] // PROCESS_BYTES))


def shared_out(device: str, quick: bool, processes: int) -> tuple[dict[str, str], int]:
    """The gate and the benchmarked shapes, shared out over processes; failures by name and number of cases."""
    command = [sys.executable, __file__, "--device", device, *(["--quick"] if quick else [])]
    started = [
        subprocess.Popen([*command, "--share", str(i), str(processes)], stdout=subprocess.PIPE, text=True)
        for i in range(processes)
    ]
    failures: dict[str, str] = {}
    count = 0
    for i, process in enumerate(started):
        text, _ = process.communicate()
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        if process.returncode or not lines:
            failures[f"process {i} of {processes}"] = f"ended with status {process.returncode}"
            continue
        failures |= lines[-1]["failures"]
        count += lines[-1]["count"]
    return failures, count


def main(arguments: list[str] | None = None) -> int:
    """Command line: python benchmarks/gate.py; 1 where a case failed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, …, or cpu")
    parser.add_argument("--quick", action="store_true", help="a third of the cases, tiny shapes")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help="these cases alone, in this process")
    parser.add_argument("--processes", type=int, default=1, help="that check (and compile) at once, at most")
    parser.add_argument("--output", type=Path, help="CSV that gets the gate's row: gpu.py then does not run it again")
    parser.add_argument("--share", nargs=2, type=int, metavar=("I", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if options.share:
        share = slice(options.share[0], None, options.share[1])
        failures, count = run_gate(device, case_names(options.quick)[share])
        print(json.dumps({"failures": failures | check_shapes(device, options.quick, share), "count": count}))
        return 0
    if options.only:
        failures, count = run_gate(device, options.only)
    else:
        failures, count = shared_out(options.device, options.quick, fitting(device, options.processes))
    row = gate_row(failures, count)
    if options.output:
        append(options.output, [stamp(row, device)])
    return int(row.gate == "red")


def gate_row(failures: dict[str, str], count: int) -> Row:
    """Prints what failed; the row that says so."""
    state = "red" if failures else "green"
    print(f"  {count} cases against float64, {len(failures)} failed: {state}")
    for name, message in failures.items():
        print(f"  FAILED {name}: {message}")
    return Row("gate", GATE_CASE, "ours", gate=state, config={"failed": sorted(failures)})


if __name__ == "__main__":
    sys.exit(main())
