"""The C++ kernels on this processor against the best torch formulations, with one thread and with two.

``python benchmarks/cpu_kernels.py`` checks every result against float64, times all candidates in turn, prints a table
and appends to benchmarks/data/cpu_kernels.csv. GB/s count the operation's least traffic and stand beside a copy and
a read (a sum) measured in the same run. Caches stay as they are: in training ``dy`` has just been written by the layer
above.

Rivals keep whatever layout and precision suit them: ``bmm(hT, dy)`` stores ``[S,R,N]``, bfloat16 products are rounded
to bfloat16 (see the column ``error``), norms and sums are float32 unless the name says float64.

What bounds the ratios, to be read beside the copy and the read of the same run:

* ``backward`` cannot do less than its products: ``flops`` of a row divided by ``core_gflop_per_s`` (products that stay
  in registers, ``cpu_peak.py``) is the least time on one core. In bfloat16 both sides use the same dot instruction, so
  the most that can be gained on a rival is that rival's own distance from the peak. What keeps ours from the peak at
  short segments is work per column, not per token: words of two tokens are made, sums are scaled, squared in float64
  and stored, in float32 where ``kept`` writes bfloat16 into memory that its allocator has just used. ``bmm(hT, dy)
  float32`` is the rival that keeps what ours keeps.
* ``clip_reduce_`` with norms given is one read of the arena for both sides, and ours also zeroes, reads and writes
  float64 totals (24 bytes a column where an ``mv`` writes 4): with few segments that is a large share. Beyond the
  caches the most it can gain on a rival that reads at x GB/s is the measured read divided by x, less those totals.
* Without norms the fair rival is what people write: ``vector_norm``, ``clamp``, ``coef @ g``, two reads of the arena.
  Ours reads it once where a few rows fit the caches; rows of 4 MiB and more are read twice by both.
* The checks and the dispatcher of a call take tens of microseconds where other code has run in between, a torch
  operation a few: seen in the smallest shapes, whose whole call takes 100 to 200.
"""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import replace
from pathlib import Path

import arena_peers
import cpu_peak
import op_peers
import torch
from harness import Clock, copy_bandwidth, interleave
from op_bench import run_case
from op_peers import SCALE, Inputs, OpCase
from record import OK, Row, append, stamp
from schemes import Layer
from torch import Tensor

from ffalora_kernels import dispatch

CSV = Path(__file__).parent / "data" / "cpu_kernels.csv"
#: Segments, tokens of each, out-features, rank: MiniLM, RoBERTa base and large, a 4096-wide layer.
SHAPES = [(64, 32, 384, 8), (64, 32, 384, 16), (32, 64, 768, 8), (16, 128, 1024, 16), (8, 128, 4096, 16)]
ARENAS = [(64, 36_864), (64, 147_456), (16, 1_048_576)]
_BLOCK = 8192


def _bmm_kept(i: Inputs) -> tuple[Tensor, ...]:
    """g stays [S,R,N] and the scale goes into h: the least that torch can do."""
    s, t = len(i.segments), i.segments.longest
    dy, h = i.dy.view(s, t, -1), (i.h * SCALE).view(s, t, -1)
    g = torch.bmm(h.transpose(1, 2), dy)
    norms = torch.linalg.vector_norm(g.view(s, -1), dim=1)
    return torch.mm(i.dy, i.b[0] * SCALE), g.transpose(1, 2), norms.double().square()


def _bmm_upcast(i: Inputs) -> tuple[Tensor, ...]:
    """As ``_bmm_kept``, with g in float32 whatever the activations are."""
    s, t = len(i.segments), i.segments.longest
    dy, h = i.dy.float().view(s, t, -1), (i.h.float() * SCALE).view(s, t, -1)
    g = torch.bmm(h.transpose(1, 2), dy)
    return torch.mm(i.dy, i.b[0] * SCALE), g.transpose(1, 2), torch.linalg.vector_norm(g.view(s, -1), dim=1).square()


def _bmm_natural(i: Inputs) -> tuple[Tensor, ...]:
    """g as [S,N,R] straight from the product."""
    s, t = len(i.segments), i.segments.longest
    g = torch.bmm(i.dy.view(s, t, -1).transpose(1, 2), (i.h * SCALE).view(s, t, -1))
    return torch.mm(i.dy, i.b[0] * SCALE), g, torch.linalg.vector_norm(g.view(s, -1), dim=1).double().square()


def _clip_given_float32(i: Inputs) -> tuple[Tensor, ...]:
    factors = (i.limit[0] / i.squares[:, 0].sqrt()).clamp(max=1.0).float()
    return ((factors @ i.arena)[None],)


def _clip_float64(i: Inputs) -> tuple[Tensor, ...]:
    """The contract's arithmetic: float64 squares and sums, in blocks of columns that stay in the cache."""
    blocks = i.arena.split(_BLOCK, dim=1)
    squares = i.squares[:, 0]
    if not i.given:
        squares = sum(block.double().square_().sum(1) for block in blocks)
    factors = (i.limit[0] / squares.sqrt()).clamp(max=1.0).masked_fill(~squares.isfinite(), 0.0)
    live = factors > 0
    for block, total in zip(blocks, i.total.split(_BLOCK, dim=1), strict=True):
        torch.mv(block.double().nan_to_num_(0.0, 0.0, 0.0).T, factors * live, out=total[0])
    return (i.total,)


def cases(quick: bool) -> list[OpCase]:
    """All operations on all shapes; ``quick`` keeps the first shape of each."""
    device = torch.device("cpu")
    made = []
    for s, t, n, r in SHAPES[: 1 if quick else None]:
        for dtype in (torch.float32, torch.bfloat16):
            layer, where = Layer(s, t, n, n, r, dtype.itemsize), f"N{n}"
            made.append(op_peers.expand_case(where, layer, dtype, device, 3, compiled=False))
            backward = op_peers.backward_case(where, layer, dtype, device, 3, compiled=False)
            backward.candidates |= {"bmm(hT, dy) kept": _bmm_kept, "bmm(dyT, h)": _bmm_natural}
            if dtype != torch.float32:
                backward.candidates["bmm(hT, dy) float32"] = _bmm_upcast
            made += [backward, op_peers.outer_case(where, layer, dtype, device, 3, compiled=False)]
    for s, p in ARENAS[: 1 if quick else None]:
        for given in (True, False):
            clip = arena_peers.clip_case(s, p, device, 2, compiled=False, given=given)
            clip.candidates["torch float64"] = _clip_float64
            if given:
                clip.candidates["torch"] = _clip_given_float32
            made.append(clip)
        made.append(arena_peers.step_case(p, device, 2, compiled=False))
    return made


def ratio_to_best(rows: list[Row]) -> tuple[float, str]:
    """How many times faster 'ours' is than the fastest rival, and that rival's name."""
    ours = next(row for row in rows if row.provider == "ours")
    rivals = [row for row in rows if row.provider != "ours" and row.status == OK and row.ms > 0]
    if not rivals or ours.status != OK:
        return math.nan, "none"
    best = min(rivals, key=lambda row: row.ms)
    return best.ms / ours.ms, best.provider


def read_bandwidth(clock: Clock, bytes_read: int) -> float:
    """GB/s of a sum over that many bytes: no operation reads an arena of this size faster."""
    source = torch.ones(bytes_read // 4)
    return bytes_read / interleave({"sum": lambda _: source.sum()}, clock, 15)["sum"].median / 1e6


def share_of_peak(row: Row) -> float:
    """What a product of matrices reaches of the arithmetic peak of its dtype on its cores; NaN where it is unknown or
    was not measured right (a share above 1).
    """
    rate = row.config["core_gflop_per_s"].get(row.case.rpartition(" ")[2], math.nan)
    share = row.config["flops"] / row.ms / 1e6 / (rate * row.config["threads"])
    return share if share <= 1.0 else math.nan


def main() -> None:
    """Runs all cases, appends them to the CSV and prints one line a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=5.0, help="most seconds for a case")
    parser.add_argument("--quick", action="store_true", help="one shape an operation")
    parser.add_argument("--out", type=Path, help=f"[{CSV.name}, or with --tune the table of choices]")
    parser.add_argument("--tune", action="store_true", help="fill the table of which form answers on this part")
    options = parser.parse_args()
    if dispatch.load("cpp")[0] is None:
        raise SystemExit(f"no C++ kernels to measure: {dispatch.load('cpp')[1]}")
    if options.tune:
        import cpu_tune

        return cpu_tune.tune(options.out or cpu_tune.TABLE)
    clock = Clock(torch.device("cpu"), flush=False)
    peak = cpu_peak.gflop_per_s()
    print(", ".join(f"one core: {rate:.0f} GFLOP/s in {name}" for name, rate in peak.items()) or "no peak measured")
    for threads in options.threads:
        torch.set_num_threads(threads)
        copied = copy_bandwidth(clock, 64)
        reads = {p: read_bandwidth(clock, 4 * s * p) for s, p in ARENAS}
        shown = ", ".join(f"{rate:.0f}" for rate in reads.values())
        print(f"{threads} threads, copy {copied:.1f} GB/s, arenas read at {shown} GB/s, load {os.getloadavg()[0]:.1f}")
        for case in cases(options.quick):
            rows = run_case(case, f"cpu_kernels {threads} threads", clock, copied, options.repeats, options.seconds)
            load = {"threads": threads, "load": round(os.getloadavg()[0], 1), "copy_gb_per_s": round(copied, 1)}
            load["read_gb_per_s"] = [round(rate, 1) for rate in reads.values()]
            load |= {"flops": case.flops, "core_gflop_per_s": {name: round(rate) for name, rate in peak.items()}}
            rows = [stamp(replace(row, config=load), clock.device) for row in rows]
            append(options.out or CSV, rows)
            ours, (ratio, best) = next(row for row in rows if row.provider == "ours"), ratio_to_best(rows)
            spread = f"{ours.ms_low:.3f}…{ours.ms_high:.3f}"
            at_peak = share_of_peak(ours)
            print(
                f"{case.name:48} {ours.ms:8.3f} ms ({spread}) {ours.gb_per_s:6.1f} GB/s  {ratio:5.2f} x {best}  "
                f"{'' if math.isnan(at_peak) else f'{at_peak:.0%} of peak '}{'' if ours.status == OK else ours.status}",
                flush=True,
            )


if __name__ == "__main__":
    main()
