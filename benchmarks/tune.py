"""Measures candidate launch configurations on the GPU at hand and prints the winners as a table for ``configs.py``.

``python benchmarks/tune.py`` times ``backward`` and ``expand_`` in bf16 over ranks and typical layers, as the harness
times (cold caches, behind a queued wait, so that gaps between launches do not count). All candidates are compiled
first, shared out over processes. Every candidate is a row of the CSV as soon as it is measured; called again, it goes
on where it stopped. A candidate that fails to compile or gives a wrong result has a row that says so. The tables are
frozen by a person, who pastes the winners, brings the compile report up to date and runs the tests.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple
from itertools import product
from pathlib import Path
from unittest import mock

import checkout  # noqa: F401
import torch
from csv_tables import read_table
from harness import Clock

import ffalora_kernels as ffk
from ffalora_kernels import Segments
from ffalora_kernels.triton import configs, launch

RANKS = (8, 16, 32, 64, 128, 256)
LAYERS = ((16, 128, 1024), (8, 512, 4096))  # segments, tokens of each, out-features
CANDIDATES = {
    "backward": list(product((32, 64, 128), (64, 128, 256, 512), (4, 8), (2, 3, 4))),
    "expand": list(product((32, 64, 128), (64, 128, 256), (4, 8), (2,))),
}
#: Bytes of a block's shared memory on the largest part: candidates whose stages need more are not tried.
_MOST_SHARED = 227 * 1024
COLUMNS = ("device", "part", "family", "rank", "block_t", "block_n", "num_warps", "num_stages", "ms", "status")
OK = "ok"
REPEATS = 20
WORST_ERROR = 1e-2
Key = tuple[str, ...]
Measure = Callable[[str, int, configs.Config], float]


@contextmanager
def trying(family: str, config: configs.Config) -> Iterator[None]:
    """Within the block this kernel family, and no other, uses this configuration."""
    frozen = configs.choose

    def choose(asked: str, *args: object, **options: object) -> configs.Config:
        return config if asked == family else frozen(asked, *args, **options)

    with mock.patch.object(configs, "choose", choose):
        yield


def calls(family: str, s: int, t: int, n: int, r: int) -> tuple[Callable[[], torch.Tensor], torch.Tensor]:
    """A call of the family on one layer, and what it must return."""
    torch.manual_seed(0)
    segments, m = Segments.uniform(s, t, device="cuda"), s * t
    draw = lambda *shape: torch.randn(*shape, device="cuda").bfloat16()  # noqa: E731
    dy, h, b = draw(m, n), draw(m, r), draw(1, n, r)
    arena = torch.empty(s, n * r, device="cuda")
    if family == "expand":
        y = torch.zeros_like(dy)

        def expand() -> torch.Tensor:
            ffk.expand_(y, h, b, segments, 1.0)
            return y

        return expand, h.float() @ b[0].float().T

    def backward() -> torch.Tensor:
        ffk.backward(dy, h, b, segments, 1.0, arena, 0)
        return arena

    return backward, torch.einsum("stn,str->snr", dy.view(s, t, n).float(), h.view(s, t, r).float()).reshape(s, -1)


def on_the_gpu(clock: Clock) -> Measure:
    """Measures a candidate: sum over the layers of its median milliseconds.

    The measure raises RuntimeError where a result is wrong, and whatever a launch raises.
    """

    def measure(family: str, r: int, config: configs.Config) -> float:
        total = 0.0
        with trying(family, config), ffk.use_backend("triton"):
            for s, t, n in LAYERS:
                call, expected = calls(family, s, t, n, r)
                error = float((call().float() - expected).norm() / expected.norm())
                if not error < WORST_ERROR:
                    raise RuntimeError(f"relative error {error:.1e}")
                total += statistics.median(clock.time(lambda _, call=call: call(), i) for i in range(REPEATS))
        return total

    return measure


def read(path: Path) -> dict[Key, dict[str, str]]:
    """Rows by everything but their result."""
    return {tuple(row[c] for c in COLUMNS[:-2]): row for row in read_table(path)}


def candidates(ranks: Sequence[int]) -> list[tuple[str, int, configs.Config]]:
    """Family, rank and configuration of everything that is tried, in the order of the table. ``expand_`` pads to 16."""
    return [
        (family, r, configs.Config(*values))
        for r, family in product(ranks, CANDIDATES)
        for values in CANDIDATES[family]
        if 2 * values[0] * (values[1] + r) * values[3] <= _MOST_SHARED and (family, r) != ("expand", 8)
    ]


def compile_all(ranks: Sequence[int], processes: int) -> None:
    """Fills Triton's cache: every candidate is run once by one of several processes."""
    command = [sys.executable, __file__, "--ranks", *map(str, ranks), "--share"]
    started = [subprocess.Popen([*command, str(i), str(processes)]) for i in range(processes)]
    for process in started:
        process.wait()


def compile_share(ranks: Sequence[int], share: slice) -> None:
    """Runs every one of these candidates once; a candidate that fails is found again when it is measured."""
    for family, r, config in candidates(ranks)[share]:
        with trying(family, config), ffk.use_backend("triton"), suppress(Exception):
            calls(family, *LAYERS[0], r)[0]()


def tune(
    path: Path,
    device: str,
    part: str,
    measure: Measure,
    time_left: Callable[[], bool],
    ranks: Sequence[int] | None = None,
) -> bool:
    """Appends a row for every candidate that has none yet; False where the time did not suffice."""
    done = read(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not done and file.tell() == 0:
            writer.writerow(COLUMNS)
        for family, r, config in candidates(RANKS if ranks is None else ranks):
            key = (device, part, family, *map(str, (r, *astuple(config))))
            if key in done:
                continue
            if not time_left():
                return False
            try:
                found, status = f"{measure(family, r, config):.5f}", OK
            except Exception as reason:
                found, status = "", " ".join(str(reason).split())[:120] or type(reason).__name__
            writer.writerow((*key, found, status))
            file.flush()
    return True


def table(rows: Iterable[dict[str, str]], device: str, part: str) -> str:
    """The fastest candidate of each family and rank, as text for ``configs.py``."""
    lines = [f"# {device}", f'"{part}": {{']
    own = [row for row in rows if (row["device"], row["part"]) == (device, part) and row["status"] == OK]
    for family in CANDIDATES:
        lines.append(f'    ("{family}", 2): {{')
        for r in RANKS:
            some = [row for row in own if (row["family"], row["rank"]) == (family, str(r))]
            if some:
                best = min(some, key=lambda row: float(row["ms"]))
                config = configs.Config(*(int(best[c]) for c in COLUMNS[4:8]))
                lines.append(f"        {r}: Config{astuple(config)},  # {float(best['ms']):.4f} ms")
        lines.append("    },")
    return "\n".join([*lines, "}"])


def main(arguments: list[str] | None = None) -> int:
    """Command line; 1 where the time did not suffice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/tune.csv"), help="where rows are kept")
    parser.add_argument("--minutes", type=float, default=10.0, help="stop measuring after this long")
    parser.add_argument("--ranks", nargs="+", type=int, default=list(RANKS), help=f"padded ranks [{RANKS}]")
    parser.add_argument("--processes", type=int, default=min(16, os.cpu_count() or 1), help="that compile at once")
    parser.add_argument("--share", nargs=2, type=int, metavar=("I", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("tune.py measures on a GPU, and torch sees none; the frozen tables stay as they are")
    if options.share:
        compile_share(options.ranks, slice(options.share[0], None, options.share[1]))
        return 0
    device, end = torch.device("cuda"), time.monotonic() + 60 * options.minutes
    compile_all(options.ranks, options.processes)
    name, part = torch.cuda.get_device_name(), launch.architecture(device)
    finished = tune(
        options.output, name, part, on_the_gpu(Clock(device)), lambda: time.monotonic() < end, options.ranks
    )
    print(table(read(options.output).values(), name, part))
    if not finished:
        print("not every candidate was measured: call again to go on")
    return int(not finished)


if __name__ == "__main__":
    sys.exit(main())
