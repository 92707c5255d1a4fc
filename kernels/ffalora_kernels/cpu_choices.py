"""Which form answers an operation on this processor: the C++ kernel, or torch's own products (``cpu_products``).

``cpu_choices.csv`` has a line for each operation, number format and part, and a column for each class of shapes: how
many times as fast as torch's form the kernel was there. ``benchmarks/cpu_kernels.py --tune`` writes the lines of the
part it runs on. A part without a line takes torch's products for bfloat16, which processors have units for of many
kinds, and the kernels for float32.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import torch

from . import _cpu
from .cpuinfo import halves_wide_vectors, is_intel

TABLE = Path(__file__).with_name("cpu_choices.csv")
#: A class of shapes holds ranks and out-features up to these; the last ones hold all above them too.
RANKS, WIDTHS = (8, 16, 32), (512, 2048, 4096)
OPERATIONS = ("expand_", "backward", "outer")
#: The kernel answers where it is at least this many times as fast as torch's form.
EVEN = 0.97
_LEVELS = ("baseline", "avx2", "avx512", "avx512_bf16", "amx")


def part() -> str:
    """The instruction set in use: 'amx', 'avx512_bf16', 'avx512', 'avx2', or 'baseline'; 'zen4' is 'avx512_bf16' on
    a processor that computes such vectors in halves, 'avx2_intel' is 'avx2' where torch's library is its maker's own.
    """
    name = _LEVELS[_cpu.level()]
    if name == "avx2" and is_intel():
        return "avx2_intel"
    return "zen4" if name == "avx512_bf16" and halves_wide_vectors() else name


def shape_class(n: int, r: int) -> str:
    """The class of a layer with ``n`` out-features and rank ``r``, e.g. 'N512 R8'."""
    width = next((bound for bound in WIDTHS if n <= bound), WIDTHS[-1])
    return f"N{width} R{next((bound for bound in RANKS if r <= bound), RANKS[-1])}"


CLASSES = tuple(shape_class(n, r) for n in WIDTHS for r in RANKS)


def torch_answers(op: str, dtype: torch.dtype, n: int, r: int) -> bool:
    """Whether torch's form answers ``op`` on float32 or bfloat16 activations."""
    return _torch_answers(op, dtype, shape_class(n, r), part())


@cache
def _torch_answers(op: str, dtype: torch.dtype, shape: str, here: str) -> bool:
    line = measured().get((op, str(dtype).removeprefix("torch."), here))
    return dtype is torch.bfloat16 if line is None else float(line[shape]) < EVEN


@cache
def measured() -> dict[tuple[str, str, str], dict[str, str]]:
    """The table: lines by operation, number format and part."""
    with TABLE.open(newline="") as file:
        return {(line["op"], line["dtype"], line["part"]): line for line in csv.DictReader(file)}


def describe() -> dict[str, str]:
    """For each operation and number format, in words, what answers on this processor (shown by ``ffalora info``)."""
    told = {"part": part()}
    for op in OPERATIONS:
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            slower = [shape for shape in CLASSES if _torch_answers(op, dtype, shape, part())]
            known = "measured" if (op, name, part()) in measured() else "not measured on this part"
            if len(slower) == len(CLASSES):
                told[f"{op} {name}"] = f"torch's products ({known})"
            else:
                but = f", torch's products for {', '.join(slower)}" if slower else ""
                told[f"{op} {name}"] = f"C++{but} ({known})"
    return told
