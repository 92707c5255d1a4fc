"""Fills ``ffalora_kernels/cpu_choices.csv``: the C++ kernels against torch's forms that may answer in their place.

A part's line has, for each class of shapes, torch's time over the kernel's (medians of calls in turn, one thread). The
lower instruction sets of a processor are measured too, each in a process whose torch is held to the same set: a
stand-in for parts that have no other, named as such by the column ``device``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import date
from itertools import product
from pathlib import Path

import op_peers
import torch
from csv_tables import read_table, write_table
from harness import Call, Clock, interleave
from record import commit, device_name
from schemes import Layer

from ffalora_kernels import _cpu, cpu, cpu_products
from ffalora_kernels.cpu_choices import CLASSES, OPERATIONS, RANKS, TABLE, WIDTHS, part, shape_class
from ffalora_kernels.cpuinfo import is_amd

COLUMNS = ("op", "dtype", "part", *CLASSES, "device", "commit", "date")
#: What stands for a class of widths: segments, tokens of each, out-features.
LAYERS = {512: (64, 32, 384), 2048: (32, 64, 1024), 4096: (8, 128, 4096)}
#: Levels of the kernels, and what holds torch's libraries to the same instructions.
_HELD = {
    "avx2": (1, {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}),
    "avx512": (2, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_ENABLE_INSTRUCTIONS": "AVX512"}),
}


def calls(op: str, n: int, r: int, dtype: torch.dtype) -> dict[str, Call]:
    """Both forms of an operation on the shape that stands for a class."""
    s, t, width = LAYERS[n]
    layer = Layer(s, t, width, width, r, dtype.itemsize)
    inputs = op_peers.backward_case("tune", layer, dtype, torch.device("cpu"), 3, compiled=False).inputs

    def call(form):
        def run(number: int) -> None:
            i = inputs[number % len(inputs)]
            at = (i.segments.offsets, i.segments.client)
            if op == "expand_":
                form(i.y, i.h, i.b, *at, op_peers.SCALE, t)
            elif op == "backward":
                form(i.dy, i.h, i.b, *at, op_peers.SCALE, t, i.arena, 0, i.squares, 0, False, True)
            else:
                form(i.h, i.dy, at[0], op_peers.SCALE, t, i.arena, 0, i.squares, 0, False)

        return run

    forms = {
        "expand_": (cpu.expand, cpu_products.torch_expand),
        "backward": (cpu.backward, cpu_products.torch_backward),
        "outer": (cpu.outer, cpu_products.torch_outer),
    }
    return {name: call(form) for name, form in zip(("cpp", "torch"), forms[op], strict=True)}


def lines(repeats: int, seconds: float) -> list[dict[str, str]]:
    """The lines of this process's part."""
    clock, found = Clock(torch.device("cpu"), flush=False), []
    for op, dtype in product(OPERATIONS, (torch.float32, torch.bfloat16)):
        line = {"op": op, "dtype": str(dtype).removeprefix("torch."), "part": part()}
        for n, r in product(WIDTHS, RANKS):
            timings = interleave(calls(op, n, r, dtype), clock, repeats, seconds)
            line[shape_class(n, r)] = f"{timings['torch'].median / timings['cpp'].median:.2f}"
        line |= {"device": device_name(clock.device), "commit": commit(), "date": date.today().isoformat()}
        print("  ".join([op, line["dtype"], line["part"], *(f"{name}: {line[name]}" for name in CLASSES)]), flush=True)
        found.append(line)
    return found


def tune(path: Path = TABLE, repeats: int = 40, seconds: float = 0.6) -> None:
    """Measures this part and the ones below it; other parts' lines stay as they are."""
    torch.set_num_threads(1)
    if wanted := os.environ.get("FFALORA_TUNE_LEVEL"):
        _cpu.set_level(int(wanted))
    keep(path, lines(repeats, seconds))
    if not wanted and part() != "zen4":  # a part of its own, which stands for no other
        for name, (level, held) in _HELD.items():
            if level < _cpu.level() and not (name == "avx512" and is_amd()):  # AMD's have more wherever they have that
                print(f"{name}, torch held to it", flush=True)
                environment = os.environ | held | {"FFALORA_TUNE_LEVEL": str(level)}
                command = [sys.executable, str(Path(__file__).with_name("cpu_kernels.py")), "--tune"]
                subprocess.run([*command, "--out", str(path)], env=environment, check=True)


def keep(path: Path, made: list[dict[str, str]]) -> None:
    """Writes the lines into the table, in place of older ones of the same operation, format and part."""
    table = {(line["part"], line["op"], line["dtype"]): line for line in [*read_table(path), *made]}
    write_table(path, COLUMNS, [table[key] for key in sorted(table)])
