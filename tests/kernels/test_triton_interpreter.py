"""T1: every case under Triton's interpreter (its own process: the mode is fixed when triton is imported)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases import CASES, TRITON_CASES
from emulator import require_tools

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def outcome() -> dict:
    require_tools()
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(HERE / "interpret.py")], capture_output=True, text=True, env=environment, timeout=280
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", [*CASES, *TRITON_CASES])
def test_interpreted_kernel_equals_float64_reference(name: str, outcome: dict) -> None:
    assert outcome[name] is None, outcome[name]
