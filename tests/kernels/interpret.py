"""Runs cases under Triton's interpreter and prints ``{case: message or null}``.

With the argument ``mutants`` it runs the broken kernels instead. The mode is set when triton is imported.
"""

import json
import os
import sys
import traceback

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton  # noqa: F401
from cases import CASES
from mutations import INTERPRETED, mutated
from narrow_floats import install
from triton_cases import TRITON_CASES


def run(name: str) -> str | None:
    """What the case raised, or None."""
    try:
        (CASES | TRITON_CASES)[name]("triton")
    except Exception:
        return traceback.format_exc()
    return None


def run_mutants() -> dict[str, str | None]:
    """For each mutation, what the case that must see it raised."""
    outcome = {}
    for at, mutation in enumerate(INTERPRETED):
        with mutated(mutation):
            outcome[str(at)] = run(mutation.seen_by)
    return outcome


if __name__ == "__main__":
    install()
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    mutants = sys.argv[1:] == ["mutants"]
    print(json.dumps(run_mutants() if mutants else {name: run(name) for name in [*CASES, *TRITON_CASES]}))
