"""Compiles every shipped launch for every architecture and records registers, spills, shared memory and instructions.

``python benchmarks/compile_report.py`` brings benchmarks/data/compile_report.csv up to date: a row is compiled
again only if the hash of its kernel's source, signature, constants, options and Triton version changed. ``--check``
compiles nothing and fails if a row is missing, stale or breaks a rule; ``--sample N`` also compiles N rows again and
compares.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import triton
from launches import Launch, all_launches
from record import write_table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CSV = Path(__file__).parent / "data" / "compile_report.csv"
#: Other versions of Triton generate other code: there is nothing to compare with.
REPORTED_WITH, SKIPPED = "3.7.1", 77
#: Shared memory a block may use, in bytes.
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_89": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
MEASURED = (
    "registers", "spill_bytes", "shared_bytes", "mma", "wgmma", "tcgen05",
    "load_16", "load", "store_16", "store", "atomics",
)  # fmt: skip
COLUMNS = (
    "key", "arch", "kernel", "case", "dtype", "rank", "block_t", "block_n", "num_warps", "num_stages", *MEASURED,
)  # fmt: skip
_OPCODE = re.compile(r"^\s+(?:/\*[0-9a-f]+\*/)?\s*(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_]*(?:\.[A-Za-z0-9_]+)*)", re.M)
_SASS = {
    "mma": r"HMMA", "wgmma": r"HGMMA", "tcgen05": r"UTC\w*MMA", "load_16": r"(LDG|LDGSTS)\..*(128|ENL2)",
    "load": r"(LDG|LDGSTS)(\.|$)", "store_16": r"STG\..*(128|ENL2)", "store": r"STG(\.|$)",
    "atomics": r"RED(G|\.)|ATOMG",
}  # fmt: skip
_TENSOR_CORE_KERNELS = ("backward_kernel", "expand_kernel", "project_kernel", "outer_kernel")
_GCN = {
    "mma": r"v_mfma", "load_16": r"(global|buffer)_load_dwordx4", "load": r"(global|buffer)_load",
    "store_16": r"(global|buffer)_store_dwordx4", "store": r"(global|buffer)_store",
    "atomics": r"(global|buffer)_atomic",
}  # fmt: skip


def key_of(launch: Launch) -> str:
    """Hash of everything that decides the machine code."""
    parts = (
        triton.__version__, launch.arch, launch.fn.cache_key, sorted(launch.types.items()),
        sorted((k, str(v)) for k, v in launch.constants.items()), sorted(map(str, launch.attributes.items())),
        sorted(launch.options.items()),
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def describe(launch: Launch) -> dict:
    """The columns of a row that are known without compiling."""
    constants = launch.constants
    return {
        "key": key_of(launch), "arch": launch.arch, "kernel": launch.kernel, "case": launch.case, "dtype": launch.dtype,
        "rank": launch.rank, "block_t": constants.get("BLOCK_T", ""),
        "block_n": constants.get("BLOCK_N", constants.get("BLOCK_P", constants.get("BLOCK", ""))),
        "num_warps": launch.options["num_warps"], "num_stages": launch.options.get("num_stages", ""),
    }  # fmt: skip


def compile_row(launch: Launch) -> dict:
    """Compiles a launch for its architecture and returns its whole row."""
    amd = launch.arch.startswith("gfx")
    target = GPUTarget("hip", launch.arch, 64) if amd else GPUTarget("cuda", int(launch.arch.removeprefix("sm_")), 32)
    source = ASTSource(launch.fn, launch.types, launch.constants, launch.attributes)
    compiled = triton.compile(source, target=target, options=launch.options)
    measured = _measure_amd(compiled.asm["amdgcn"]) if amd else _measure_nvidia(compiled.asm, launch.arch)
    return describe(launch) | {"shared_bytes": compiled.metadata.shared} | measured


def _measure_nvidia(asm: dict, arch: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder, "k.ptx"), Path(folder, "k.cubin")
        ptx.write_text(asm["ptx"])
        cubin.write_bytes(asm["cubin"])
        part = arch if arch in ("sm_80", "sm_89") else arch + "a"
        assembler = "ptxas-blackwell" if arch == "sm_100" else "ptxas"
        log = _tool(assembler, "-v", f"--gpu-name={part}", str(ptx), "-o", str(Path(folder, "again.cubin")))
        sass = _tool("nvdisasm", "-c", str(cubin))
    opcodes = _OPCODE.findall(sass)
    counts = {name: sum(bool(re.match(pattern, op)) for op in opcodes) for name, pattern in _SASS.items()}
    spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", log))
    return {"registers": int(re.search(r"Used (\d+) registers", log)[1]), "spill_bytes": spills, **counts}


def _measure_amd(text: str) -> dict:
    def number(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", text)[1])

    counts = {name: len(re.findall(rf"^\s+{pattern}", text, re.M)) for name, pattern in _GCN.items()}
    spills = 4 * (number("vgpr_spill_count") + number("sgpr_spill_count"))
    return {"registers": number("vgpr_count"), "spill_bytes": spills, "wgmma": 0, "tcgen05": 0, **counts}


def _tool(name: str, *arguments: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    run = subprocess.run([str(path), *arguments], capture_output=True, text=True, check=True)
    return run.stdout + run.stderr


def broken_rules(row: dict) -> list[str]:
    """What a shipped launch must not do: spill, exceed shared memory, lose the tensor cores or 16-byte loads."""
    found = []
    half = row["dtype"] != "float32"
    if half and int(row["spill_bytes"]):
        found.append(f"spills {row['spill_bytes']} bytes")
    if int(row["shared_bytes"]) > SHARED_LIMIT[row["arch"]]:
        found.append(f"needs {row['shared_bytes']} bytes of shared memory of {SHARED_LIMIT[row['arch']]}")
    if half and row["kernel"] in _TENSOR_CORE_KERNELS:
        warp_groups = row["arch"] == "sm_90" and row["kernel"] == "backward_kernel"
        if not sum(int(row[name]) for name in (("wgmma",) if warp_groups else ("mma", "wgmma", "tcgen05"))):
            found.append("does not use the tensor cores" + (" by warp groups" if warp_groups else ""))
    aligned = "odd" not in row["case"] and not row["arch"].startswith("gfx")
    if half and aligned and row["kernel"] in ("backward_kernel", "expand_kernel") and not int(row["load_16"]):
        found.append("has no 16-byte loads")
    return [f"{row['arch']} {row['kernel']} ({row['case']}, {row['dtype']}, rank {row['rank']}): {w}" for w in found]


def read_rows() -> dict[str, dict]:
    """The committed rows by key."""
    if not CSV.exists():
        return {}
    with CSV.open() as file:
        return {row["key"]: row for row in csv.DictReader(file)}


def write_rows(rows: list[dict]) -> None:
    """Writes the report, sorted so that a change is a small difference."""
    rows = sorted(
        rows, key=lambda r: [str(r[c]) for c in ("kernel", "arch", "case", "dtype")] + [int(r["rank"]), r["key"]]
    )
    CSV.parent.mkdir(exist_ok=True)
    write_table(CSV, COLUMNS, rows)


def update(launches: list[Launch], minutes: float) -> None:
    """Compiles what is missing or stale, for at most ``minutes``; what remains is named and done by the next call."""
    known, rows, end = read_rows(), [], time.monotonic() + 60 * minutes
    todo = [one for one in launches if key_of(one) not in known]
    rows = [known[key_of(one)] for one in launches if key_of(one) in known]
    for count, one in enumerate(todo):
        if time.monotonic() > end:
            print(f"{len(todo) - count} of {len(todo)} left: call again")
            break
        rows.append(compile_row(one))
        print(count, {c: rows[-1][c] for c in COLUMNS[1:]}, flush=True)
    write_rows(rows)


def check(launches: list[Launch], sample: int) -> list[str]:
    """Problems: missing or stale rows, broken rules, and rows of the sample that compile to something else now."""
    known = read_rows()
    problems = [f"no row for {describe(one)}" for one in launches if key_of(one) not in known]
    for row in known.values():
        problems += broken_rules(row)
    present = [one for one in launches if key_of(one) in known]
    for one in random.Random(0).sample(present, min(sample, len(present))):
        now, then = compile_row(one), known[key_of(one)]
        changed = {c: (then[c], now[c]) for c in MEASURED if str(now[c]) != then[c]}
        if changed:
            problems.append(f"{describe(one)} now measures {changed}")
    return problems


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compile nothing; fail on missing rows and broken rules")
    parser.add_argument("--sample", type=int, default=0, help="with --check: compile this many rows again")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop compiling after this long")
    arguments = parser.parse_args()
    if arguments.check and triton.__version__ != REPORTED_WITH:
        print(f"the report was made with triton {REPORTED_WITH}, this is {triton.__version__}")
        sys.exit(SKIPPED)
    launches = all_launches()
    if not arguments.check:
        update(launches, arguments.minutes)
    problems = check(launches, arguments.sample)
    print(
        "\n".join(problems) or f"{len(launches)} launches: no spills, shared memory and tensor cores as they should be"
    )
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
