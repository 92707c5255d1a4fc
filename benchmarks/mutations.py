"""Breaks privacy on purpose, one way at a time, and records which tests notice: ``benchmarks/data/mutations.csv``.

Each mutant of ``tests/audits/mutants.py`` is loaded as a plugin of a test session of its own. A mutant that no test
notices fails the script.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = (
    "training/test_engine.py",
    "training/test_refusals.py",
    "audits/test_audit.py",
    "privacy/test_accounting.py",
    "privacy/test_sampling.py",
)
MUTANTS = (
    "noise halved", "clipping removed", "head without noise", "accounting reset each round",
    "poisson replaced by a fixed batch", "steps are not charged", "empty draws add no noise",
)  # fmt: skip


def failures(mutant: str) -> list[str]:
    """Names of the tests that fail in a package with this mutant ('' for the sound one)."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "mutants",
        "-m",
        "not slow",
        "--tb=no",
        "-p",
        "no:cacheprovider",
    ]
    command += [f"tests/{name}" for name in TESTS]
    environment = os.environ | {"FFALORA_MUTANT": mutant, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests/audits"), environment.get("PYTHONPATH", "")])
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"the test session failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    found = re.findall(r"^FAILED \S*?(test_\w+)\.py::(test_\w+)", done.stdout, flags=re.M)
    return list(dict.fromkeys(f"{file}::{name}" for file, name in found))


def main() -> None:
    if unwell := failures(""):
        sys.exit(f"the package is not sound without mutants: {unwell}")
    rows = [(mutant, failures(mutant)) for mutant in MUTANTS]
    with open(ROOT / "benchmarks/data/mutations.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["broken", "tests that notice", "which"])
        writer.writerows([mutant, len(found), " ".join(found)] for mutant, found in rows)
    for mutant, found in rows:
        print(f"{mutant:<36} {len(found):>3}  {', '.join(found[:4])}{', …' if len(found) > 4 else ''}", flush=True)
    if survivors := [mutant for mutant, found in rows if not found]:
        sys.exit(f"no test notices: {', '.join(survivors)}")


if __name__ == "__main__":
    main()
