"""T1: every case under Triton's interpreter (its own process: the mode is fixed when triton is imported)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases import CASES, TRITON_CASES
from emulator import require_tools
from mutations import INTERPRETED

HERE = Path(__file__).parent


def interpret(*arguments: str) -> dict:
    """The outcome of interpret.py in a process of its own."""
    require_tools()
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(HERE / "interpret.py"), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def outcome() -> dict:
    return interpret()


@pytest.fixture(scope="module")
def mutants() -> dict:
    return interpret("mutants")


@pytest.mark.parametrize("name", [*CASES, *TRITON_CASES])
def test_interpreted_kernel_equals_float64_reference(name: str, outcome: dict) -> None:
    assert outcome[name] is None, outcome[name]


@pytest.mark.parametrize(
    "at", range(len(INTERPRETED)), ids=lambda at: f"{INTERPRETED[at].file}: {INTERPRETED[at].what}"
)
def test_a_broken_kernel_fails_the_case_that_guards_it(at: int, mutants: dict) -> None:
    message = mutants[str(at)]
    assert message is not None, f"{INTERPRETED[at].seen_by} passes although: {INTERPRETED[at]}"
    assert "AssertionError" in message, message
