"""Bytes that the kernels move by the GPU's own counters (Nsight Compute), beside the floor of each operation."""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from op_peers import Inputs, OpCase, backward_case, clip_case, expand_case, layer_of, outer_case, step_case
from record import UNAVAILABLE, Row

METRICS = ("dram__bytes_read.sum", "dram__bytes_write.sum")
_UNITS = {"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}


def shapes(device: torch.device) -> dict[str, Callable[[], OpCase]]:
    """One case an operation, too large for the L2 cache, by the name that is given on the command line."""
    q, half = layer_of("llama-7b q", 32, 256, 8, torch.bfloat16), torch.bfloat16
    return {
        "expand_": lambda: expand_case("llama-7b q", q, half, device, 1, False),
        "backward": lambda: backward_case("llama-7b q", q, half, device, 1, False),
        "outer": lambda: outer_case("llama-7b q", q, half, device, 1, False),
        "clip_reduce_": lambda: clip_case(256, 393216, device, 1, False, True),
        "privatize_step_": lambda: step_case(4194304, device, 1, False),
    }


def measure(device: torch.device, gate: str) -> list[Row]:
    """One row an operation: bytes read and written by all its kernels; or one that says why there are none."""
    profiler = shutil.which("ncu")
    if device.type != "cuda" or profiler is None:
        return [Row("counters", "all", "ours", f"{UNAVAILABLE}: ncu is not installed or there is no GPU", gate)]
    rows = []
    for name, make in shapes(device).items():
        command = [
            profiler, "--csv", "--metrics", ",".join(METRICS), "--profile-from-start", "off",
            sys.executable, __file__, "--op", name, "--device", str(device),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
        case = make()
        if done.returncode:
            reason = (done.stdout + done.stderr).strip().splitlines()[-1:]
            rows.append(
                Row("counters", case.name, "ours", f"{UNAVAILABLE}: {' '.join(reason)[:160]}", gate, bytes=case.bytes)
            )
            continue
        moved = bytes_moved(done.stdout)
        found = {"bytes_read": moved[METRICS[0]], "bytes_written": moved[METRICS[1]]}
        ratio = sum(found.values()) / case.bytes
        rows.append(
            Row(
                "counters", case.name, "ours", gate=gate, bytes=case.bytes, config=found | {"to_floor": round(ratio, 4)}
            )
        )
    return rows


def bytes_moved(text: str) -> dict[str, float]:
    """Sums of the metrics over all kernels in the profiler's CSV output, in bytes.

    Raises:
        ValueError: the output holds no table.
    """
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        raise ValueError(f"the profiler printed no table of metrics: {text[:200]!r}")
    totals = dict.fromkeys(METRICS, 0.0)
    for row in csv.DictReader(io.StringIO("\n".join(lines[start:]))):
        if row.get("Metric Name") in totals:
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
