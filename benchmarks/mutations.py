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
#: What is broken, and the tests of its rooms.
MUTANTS = {
    ("noise halved", "clipping removed", "head without noise", "accounting reset each round",
     "poisson replaced by a fixed batch", "steps are not charged", "empty draws add no noise"):
    ("training/test_engine.py", "training/test_refusals.py", "audits/test_audit.py", "privacy/test_accounting.py",
     "privacy/test_sampling.py"),
    ("clipping norm doubled", "rows counted twice", "collator mixes neighbours", "backward scaled"):
    ("training/test_engine.py", "training/test_sensitivity.py"),
    ("dropout masks by position", "dropout keys by position", "dropout masks fresh in each pass",
     "dropout masks repeat every step", "secure dropout from a public seed", "dropout is left to the generator"):
    ("training/test_dropout.py", "training/test_sensitivity.py", "audits/test_own.py"),
    ("gradients are not compared", "probe leaves nothing out", "probe forgives everything",
     "audit guesses by a coin", "audit ignores delta"):
    ("training/test_sensitivity.py", "audits/test_audit.py", "audits/test_own.py", "audits/test_mutants.py"),
    ("prior is amplified", "prior is left out", "prior of a simulation counts"):
    ("privacy/test_prior.py", "privacy/test_accounting.py", "federated/test_accounts.py"),
    ("ledgers are not locked", "charges forget what others charged", "edited ledgers are believed",
     "edited charges are believed", "runs of other folders are not counted"):
    ("privacy/test_ledger_files.py", "privacy/test_data_ledger.py", "federated/test_accounts.py"),
    ("a site takes what the server asks for", "a site spends what the server asks for",
     "a site trains on whatever is named"):
    ("federated/test_policy.py",),
    ("statement gives the smallest epsilon", "epsilon is rounded to the nearest", "pages call simulations protected",
     "a run is held against the worst baseline"):
    ("report/test_report.py", "cli/test_cli.py", "privacy/test_statement.py", "audits/test_mutants.py"),
}  # fmt: skip


def failures(mutant: str, tests: tuple[str, ...]) -> list[str]:
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
    command += [f"tests/{name}" for name in tests]
    environment = os.environ | {"FFALORA_MUTANT": mutant, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests/audits"), environment.get("PYTHONPATH", "")])
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"the test session failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    found = re.findall(r"^FAILED \S*?(test_\w+)\.py::(test_\w+)", done.stdout, flags=re.M)
    return list(dict.fromkeys(f"{file}::{name}" for file, name in found))


def main() -> None:
    rows = []
    for mutants, tests in MUTANTS.items():
        if unwell := failures("", tests):
            sys.exit(f"the package is not sound without mutants: {unwell}")
        rows += [(mutant, failures(mutant, tests)) for mutant in mutants]
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
