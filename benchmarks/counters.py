"""Bytes that the kernels move by the GPU's own counters (Nsight Compute), beside the floor of each operation and the
emulator's count.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from arena_peers import clip_case, step_case
from csv_tables import read_table
from harness import release
from op_peers import Inputs, OpCase, backward_case, expand_case, layer_of, outer_case
from record import UNAVAILABLE, Row

SAMPLES = Path(__file__).parent / "data" / "emulator_samples.csv"
METRICS = ("dram__bytes_read.sum", "dram__bytes_write.sum")
_UNITS = {"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}


def shapes(device: torch.device) -> dict[str, Callable[[], OpCase]]:
    """One case an operation, too large for the L2 cache and one of those that the emulator sampled."""
    wide, half = layer_of("llama-7b q", 32, 256, 8, torch.bfloat16), torch.bfloat16
    many = layer_of("roberta-large q", 256, 128, 8, half)
    return {
        "expand_": lambda: expand_case("llama-7b q", wide, half, device, 1, False),
        "backward": lambda: backward_case("llama-7b q", wide, half, device, 1, False),
        "outer": lambda: outer_case("roberta-large q", many, half, device, 1, False),
        "clip_reduce_": lambda: clip_case(8, 4194304, device, 1, False, True),
        "privatize_step_": lambda: step_case(4194304, device, 1, False),
    }


def measure(device: torch.device, gate: str, time_left: Callable[[], bool] = lambda: True) -> Iterator[Row]:
    """One row an operation: bytes that its kernels read and write, over the floor and over the emulator's count; or a
    row that says why there are none. Operations are left out when no time is left.
    """
    profiler = shutil.which("ncu")
    if device.type != "cuda" or profiler is None:
        yield Row("counters", "all", "ours", f"{UNAVAILABLE}: ncu is not installed or there is no GPU", gate)
        return
    for name, make in shapes(device).items():
        if not time_left():
            print(f"  no time left for counters: {name}; run again to go on")
            return
        command = [
            profiler, "--csv", "--metrics", ",".join(METRICS), "--profile-from-start", "off", "--clock-control", "none",
            sys.executable, __file__, "--op", name, "--device", str(device),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
        case = make()
        row = Row("counters", case.name, "ours", gate=gate, bytes=case.bytes)
        release()
        if done.returncode:
            reason = " ".join((done.stdout + done.stderr).strip().splitlines()[-1:])
            yield replace(row, status=f"{UNAVAILABLE}: {reason[:160]}")
        else:
            yield replace(row, config=ratios(bytes_moved(done.stdout), case))


def ratios(moved: dict[str, float], case: OpCase) -> dict[str, float]:
    """The profiler's bytes, over the operation's floor, and over the emulator's count of this case where one is
    committed.
    """
    found = {"bytes_read": moved[METRICS[0]], "bytes_written": moved[METRICS[1]]}
    total = sum(found.values())
    found["to_floor"] = round(total / case.bytes, 4)
    op, _, name = case.name.partition(" ")
    counts = [r for r in read_table(SAMPLES) if (r["op"], r["case"]) == (op, name)]
    if counts:
        found["to_emulator"] = round(total / int(counts[0]["unique_bytes"]), 4)
    return found


def bytes_moved(text: str) -> dict[str, float]:
    """Sums of the metrics over our kernels in the profiler's CSV output (not torch's own, such as fills), in bytes.

    Raises:
        ValueError: the output holds no table.
    """
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        raise ValueError(f"the profiler printed no table of metrics: {text[:200]!r}")
    totals = dict.fromkeys(METRICS, 0.0)
    for row in csv.DictReader(io.StringIO("\n".join(lines[start:]))):
        if row.get("Metric Name") in totals and "at::" not in row["Kernel Name"]:
            value = float(row["Metric Value"].replace(",", ""))
            totals[row["Metric Name"]] += value * _UNITS[row["Metric Unit"]]
    return totals


def run_once(name: str, device: torch.device) -> None:
    """Runs one operation of ours inside the profiled range, compiled and warm."""
    case = shapes(device)[name]()
    inputs: Inputs = case.inputs[0]
    case.candidates["ours"](inputs)
    torch.cuda.synchronize(device)
    torch.cuda.profiler.start()
    case.candidates["ours"](inputs)
    torch.cuda.synchronize(device)
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--op", required=True, help="the operation to run under the profiler")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, …")
    arguments = parser.parse_args()
    run_once(arguments.op, torch.device(arguments.device))
