"""Compiles every shipped launch for every part with every claimed Triton: benchmarks/data/compile_report.csv

A row says what one version of Triton makes of one kernel on one part: registers, spills, shared memory, programs that a
multiprocessor holds, instructions. It is compiled again only if its key (kernel source, signature, constants, options,
version) changed. The newest version compiles every launch, the others the launches of ``launches.core``; each for the
parts that its own assembler knows. Needs no GPU.

    python benchmarks/compile_report.py    bring the rows of the installed Triton up to date
    … --triton 3.5.1            those of another version, unpacked in (or fetched by pip into) --folder
    … --triton all              those of every claimed version
    … --check [--sample N]      compile nothing (N rows); fail on missing or stale rows and broken rules
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
from pathlib import Path

import triton
import tritons
from csv_tables import read_table, write_table
from launches import Launch, all_launches
from machine_code import MEASURED, known_parts, measure
from parts import PARTS, resident
from triton.runtime.jit import JITFunction

CSV = Path(__file__).parent / "data" / "compile_report.csv"
#: Versions that are not claimed have no rows to compare with.
SKIPPED = 77
COLUMNS = (
    "triton", "key", "arch", "kernel", "case", "dtype", "rank", "block_t", "block_n", "num_warps", "num_stages",
    *MEASURED, "resident",
)  # fmt: skip
_PRODUCTS = ("backward_kernel", "expand_kernel", "project_kernel", "outer_kernel")
#: Programs that a multiprocessor must hold of a kernel that waits for memory: while one waits another works.
RESIDENT = 2
#: Ranks up to this one are padded to 8 columns in ``backward``, others to 16 or more.
NARROW_RANK = 8
#: At higher ranks the 2·R operations a byte of 16-bit activations come near what a part computes while it reads one.
MEMORY_BOUND_RANK = 64


def row_of(launch: Launch) -> dict:
    """Compiles a launch; its whole row."""
    row = describe(launch) | measure(launch)
    row["resident"] = resident(launch.arch, row["registers"], row["shared_bytes"], row["num_warps"])
    return row


def key_of(launch: Launch) -> str:
    """Hash of everything that decides the machine code."""
    parts = (
        triton.__version__, launch.arch, source_of(launch.fn), sorted(launch.types.items()),
        sorted((k, str(v)) for k, v in launch.constants.items()), sorted(map(str, launch.attributes.items())),
        sorted(launch.options.items()),
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def source_of(kernel: JITFunction) -> str:
    """The text of a kernel and of the functions for kernels that its file has or imports from this package."""
    found = vars(sys.modules[kernel.__module__]).values()
    return "".join(sorted(f.src for f in found if isinstance(f, JITFunction) and "ffalora" in f.__module__))


def describe(launch: Launch) -> dict:
    """The columns of a row that are known without compiling."""
    constants = launch.constants
    return {
        "triton": triton.__version__, "key": key_of(launch), "arch": launch.arch, "kernel": launch.kernel,
        "case": launch.case, "dtype": launch.dtype, "rank": launch.rank, "block_t": constants.get("BLOCK_T", ""),
        "block_n": constants.get("BLOCK_N", constants.get("BLOCK_P", constants.get("BLOCK", ""))),
        "num_warps": launch.options["num_warps"], "num_stages": launch.options.get("num_stages", ""),
    }  # fmt: skip


def broken_rules(row: dict) -> list[str]:
    """What a shipped launch must not do: spill, exceed shared memory, leave no room for a second program, lose the
    tensor cores or 16-byte loads.
    """
    found, half = [], row["dtype"] != "float32"
    if int(row["spill_bytes"]):
        found.append(f"spills {row['spill_bytes']} bytes")
    if int(row["shared_bytes"]) > PARTS[row["arch"]].shared_limit:
        found.append(f"needs {row['shared_bytes']} bytes of shared memory of {PARTS[row['arch']].shared_limit}")
    # A program that walks a long segment has its own next loads in flight.
    waits = int(row["rank"]) <= MEMORY_BOUND_RANK and row["case"] != "walk"
    if waits and int(row["resident"]) < RESIDENT:
        found.append(f"leaves room for {row['resident']} programs on a multiprocessor, not {RESIDENT}")
    if half and row["kernel"] in _PRODUCTS and row["mma"] != "":
        # Results eight columns wide are faster by single warps (an H100's times: data/tune.csv).
        warp_groups = row["arch"] == "sm_90" and row["kernel"] == "backward_kernel" and int(row["rank"]) > NARROW_RANK
        if not sum(int(row[name]) for name in (("wgmma",) if warp_groups else ("mma", "wgmma", "tcgen05"))):
            found.append("does not use the tensor cores" + (" by warp groups" if warp_groups else ""))
    aligned = "odd" not in row["case"] and not row["arch"].startswith("gfx")
    if half and aligned and row["kernel"] in ("backward_kernel", "expand_kernel") and row["load_16"] in (0, "0"):
        found.append("has no 16-byte loads")
    where = f"triton {row['triton']}, {row['arch']} {row['kernel']} ({row['case']}, {row['dtype']}, rank {row['rank']})"
    return [f"{where}: {what}" for what in found]


def read_rows() -> dict[str, dict]:
    """The committed rows by key."""
    return {row["key"]: row for row in read_table(CSV)}


def write_rows(rows: list[dict]) -> None:
    """Writes the rows of this version beside those of others, sorted so that a change is a small difference."""
    others = [row for row in read_rows().values() if row["triton"] != triton.__version__]
    order = ("kernel", "arch", "case", "dtype")
    rows = sorted([*others, *rows], key=lambda r: [*(str(r[c]) for c in order), int(r["rank"]), r["triton"], r["key"]])
    CSV.parent.mkdir(exist_ok=True)
    write_table(CSV, COLUMNS, rows)


def wanted() -> list[Launch]:
    """Launches that this version's rows are about."""
    return all_launches(known_parts(), everything=triton.__version__ == tritons.CLAIMED[-1])


def update(launches: list[Launch], minutes: float) -> None:
    """Compiles what is missing or stale of this version; what needs more than ``minutes`` is left to the next call."""
    known, end = read_rows(), time.monotonic() + 60 * minutes
    keys = {key_of(one): one for one in launches}
    rows = [row for key, row in known.items() if key in keys]
    todo = [one for key, one in keys.items() if key not in known]
    for count, one in enumerate(todo):
        if time.monotonic() > end:
            print(f"{len(todo) - count} of {len(todo)} left: call again")
            break
        rows.append(row_of(one))
        print(count, len(todo), {c: rows[-1][c] for c in COLUMNS if c != "key"}, flush=True)
        if count % 50 == 49:
            write_rows(rows)
    write_rows(rows)


def check(launches: list[Launch], sample: int) -> list[str]:
    """Problems: missing or stale rows, broken rules, and rows of the sample that compile to something else now."""
    known = read_rows()
    keys = {key_of(one): one for one in launches}
    problems = [f"no row for {describe(one)}" for key, one in keys.items() if key not in known]
    own = {key: row for key, row in known.items() if row["triton"] == triton.__version__}
    problems += [f"a row of no launch: {row}" for key, row in own.items() if key not in keys]
    for row in known.values():
        problems += broken_rules(row)
    unclaimed = sorted({row["triton"] for row in known.values()} ^ set(tritons.CLAIMED))
    problems += [f"triton {version} is not both claimed and compiled with" for version in unclaimed]
    present = [one for key, one in keys.items() if key in known]
    for one in random.Random(0).sample(present, min(sample, len(present))):
        now, then = row_of(one), known[key_of(one)]
        changed = {c: (then[c], now[c]) for c in (*MEASURED, "resident") if str(now[c]) != then[c]}
        problems += [f"{describe(one)} now measures {changed}"] if changed else []
    return problems


def main() -> int:
    """Command line; 1 where something is wrong, 77 where the installed Triton has no rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triton", help="a version, 'all' of them, or 'ends' (oldest and newest)")
    parser.add_argument("--folder", type=Path, default=tritons.default_folder(), help="where wheels are kept")
    parser.add_argument("--check", action="store_true", help="compile nothing; fail on missing rows and broken rules")
    parser.add_argument("--sample", type=int, default=0, help="with --check: compile this many rows again")
    parser.add_argument("--minutes", type=float, default=120.0, help="stop compiling after this long")
    options = parser.parse_args()
    if options.triton:
        named = {"all": tritons.CLAIMED, "ends": (tritons.CLAIMED[0], tritons.CLAIMED[-1])}
        own = [__file__, *(["--check", f"--sample={options.sample}"] if options.check else [])]
        own += [f"--minutes={options.minutes}"]
        versions = named.get(options.triton, (options.triton,))
        return max(tritons.run_with(version, options.folder, own) for version in versions)
    if triton.__version__ not in tritons.CLAIMED:
        print(f"the report is about triton {', '.join(tritons.CLAIMED)}; this is {triton.__version__}")
        return SKIPPED
    launches = wanted()
    if not options.check:
        update(launches, options.minutes)
    problems = check(launches, options.sample)
    print("\n".join(problems) or f"triton {triton.__version__}: {len(launches)} launches, all as they should be")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
