"""Counts a few programs of a big launch in the PTX emulator and scales up: benchmarks/data/emulator_samples.csv

A grid is a table of programs: rows (segments, tiles of tokens) and, beside each other, the blocks of one row. Along
each axis the first and last two programs are run and a stretch in the middle; in between, programs touch as many bytes
as those of the stretch do. What two neighbours both touch counts once, so that data shared by a whole row or column
counts once too. A count of all programs of smaller grids agrees within ``BOUND`` (tests).
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import emulate
import numpy as np
import torch
from emulate import CountCase
from emulator.launch import emulated
from emulator.machine import Observer
from op_peers import layer_of
from plan import ARENAS, SWEEP
from triton.runtime.jit import JITFunction

import ffalora_kernels as ffk

CSV = Path(__file__).parent / "data" / "emulator_samples.csv"
COLUMNS = ("op", "case", "part", "programs", "run", "floor_bytes", "allowed_bytes", "unique_bytes", "unique_to_allowed")
#: How far a sample may be from the count of all programs, relative.
BOUND = 0.001
#: Programs in the middle of an axis: eight pairs of neighbours, the period of four-byte numbers in a 32-byte sector.
STRETCH = 9
#: Parameters of a kernel that say how many programs a row of its grid has.
ROW_LENGTH = {
    "_backward_kernel": ("n_blocks",), "_expand_kernel": ("n_blocks",), "_outer_kernel": ("n_blocks", "k_blocks"),
    "_join_chunks_kernel": ("n_blocks",), "_squares_kernel": ("G", "PARTS"),
    "_reduce_kernel": ("n_blocks",), "_privatize_step_kernel": ("n_blocks",),
}  # fmt: skip
#: Kernels whose results decide what later ones read; they are small.
WHOLE = ("_factors_kernel",)
#: An arena above this is not emulated: the emulator keeps about ten bytes for each of it.
LARGEST_ARENA = 2**28


def chosen(size: int) -> list[int]:
    """The programs of an axis that are run."""
    if size <= STRETCH + 4:
        return list(range(size))
    middle = size // 2 - STRETCH // 2
    return [0, 1, *range(middle, middle + STRETCH), size - 2, size - 1]


def total(size: int, value: Callable[[int], float]) -> float:
    """Sum of ``value`` over an axis, from the chosen programs: ends as they are, the others as the stretch."""
    run = chosen(size)
    if len(run) == size:
        return sum(value(i) for i in run)
    inner = np.mean([value(i) for i in run[2:-3]])
    return value(0) + value(size - 1) + (size - 2) * float(inner)


def pairs(size: int, shared: Callable[[int], float]) -> float:
    """Sum over an axis of what program i shares with program i + 1."""
    run = chosen(size)
    if len(run) == size:
        return sum(shared(i) for i in run[:-1])
    inner = np.mean([shared(i) for i in run[2:-3]])
    return shared(0) + shared(size - 2) + (size - 3) * float(inner)


def union(rows: int, columns: int, touched: Callable[[int, int], np.ndarray]) -> float:
    """Size of the union of all programs' sets, where programs that are no neighbours share only what all between
    share.
    """

    def common(*programs: tuple[int, int]) -> int:
        found = touched(*programs[0])
        for other in programs[1:]:
            found = np.intersect1d(found, touched(*other), assume_unique=True)
        return len(found)

    def of_row(i: int) -> float:
        return total(columns, lambda j: common((i, j))) - pairs(columns, lambda j: common((i, j), (i, j + 1)))

    def of_two(i: int) -> float:
        each = total(columns, lambda j: common((i, j), (i + 1, j)))
        both = pairs(columns, lambda j: common((i, j), (i + 1, j), (i, j + 1), (i + 1, j + 1)))
        return each - both

    return total(rows, of_row) - pairs(rows, of_two)


@dataclass(frozen=True)
class Launch:
    """One launch: programs of its grid, how many were run, bytes that all together touch."""

    kernel: str
    programs: int
    run: int
    bytes: float


class _Sample:
    """The programs of one launch that are run, and the sectors that each of them touches."""

    def __init__(self, name: str, programs: int, row_length: int) -> None:
        self.name, self.programs, self.row_length = name, programs, row_length
        rows, columns = np.array(chosen(programs // row_length)), np.array(chosen(row_length))
        some = (rows[:, None] * row_length + columns[None, :]).reshape(-1)
        self.run = np.arange(programs) if name in WHOLE else some
        self._touched: dict[tuple[int, bool], list[np.ndarray]] = defaultdict(list)

    def observe(self, programs: np.ndarray, sectors: np.ndarray, reading: bool) -> None:
        """Told of each access by the emulator."""
        keys = np.unique(programs.astype(np.int64) << 40 | sectors)
        owners = keys >> 40
        for own in np.split(keys, np.flatnonzero(np.diff(owners)) + 1):
            self._touched[int(own[0] >> 40), reading].append(own & ((1 << 40) - 1))

    def launch(self) -> Launch:
        """What all programs together touch, as far as these tell."""
        sets = {key: np.unique(np.concatenate(parts)) for key, parts in self._touched.items()}
        none, length = np.empty(0, np.int64), self.row_length
        sectors = sum(
            union(self.programs // length, length, lambda i, j, r=reading: sets.get((i * length + j, r), none))
            for reading in (True, False)
        )
        return Launch(self.name, self.programs, len(self.run), 32 * sectors)


@contextmanager
def sampled(cap: int) -> Iterator[list[_Sample]]:
    """Within the block launches on CPU tensors run a sample of their programs on the emulated part."""
    samples: list[_Sample] = []

    def choose(kernel: JITFunction, bound: dict, programs: int) -> tuple[np.ndarray, Observer]:
        name = kernel.__name__
        row_length = int(np.prod([bound[parameter] for parameter in ROW_LENGTH.get(name, ())], dtype=int))
        samples.append(_Sample(name, programs, row_length))
        return samples[-1].run, samples[-1].observe

    # Norms that no program computed count as zero, so that no row is left out of a clipped sum.
    with emulated(cap, choose), mock.patch.object(torch.Tensor, "new_empty", torch.Tensor.new_zeros):
        yield samples


def estimate(case: CountCase) -> dict:
    """Runs a sample of a case's programs and returns its row."""
    with sampled(case.cap) as samples, ffk.use_backend("triton"):
        case.call()
    launches = [sample.launch() for sample in samples]
    unique, allowed = round(sum(launch.bytes for launch in launches)), case.floor + case.extra
    row = (
        case.op, case.shape, f"sm_{case.cap}", sum(x.programs for x in launches), sum(x.run for x in launches),
        case.floor, allowed, unique, round(unique / allowed, 4),
    )  # fmt: skip
    return dict(zip(COLUMNS, row, strict=True))


def cases(cap: int = 90) -> Iterator[tuple[str, str, Callable[[], CountCase]]]:
    """Operation, case and maker of every row: the byte table's cases in bfloat16, and its arenas."""
    for where, s, t, r, dtype in SWEEP:
        if dtype != torch.bfloat16:
            continue
        q = layer_of(where, s, t, r, dtype)
        name = f"{where} S{s} T{t} R{r} bfloat16"
        yield "backward", name, partial(emulate.backward, cap, [t] * s, q.n, r, True, name)
        yield "expand_", name, partial(emulate.expand, cap, q.m, q.n, r, name)
        if where.startswith("roberta"):
            yield "outer", name, partial(emulate.outer, cap, [t] * s, r, q.n, name)
    for s, p in ARENAS:
        if s * p * 4 <= LARGEST_ARENA:
            for given in (True, False):
                name = f"S{s} P{p} {'norms given' if given else 'norms from the arena'}"
                yield "clip_reduce_", name, partial(emulate.clip, cap, s, p, 1, given, name)
    for p in sorted({p for _, p in ARENAS}):
        for moments, optimizer in enumerate(("sgd", "momentum", "adamw")):
            yield "privatize_step_", f"P{p} {optimizer}", partial(emulate.privatize, cap, 1, p, moments, f"P{p}")


def main() -> None:
    """Counts every case on sm_90 and writes the table."""
    with CSV.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for op, name, make in cases():
            row = estimate(make()) | {"op": op, "case": name}
            print(row, flush=True)
            writer.writerow(row)


if __name__ == "__main__":
    main()
