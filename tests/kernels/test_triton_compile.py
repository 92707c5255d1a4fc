"""T2: the committed report covers every shipped launch and breaks no rule; a sample compiles to the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tritons

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = 77


def test_the_metadata_claims_the_versions_of_triton_that_the_report_is_about() -> None:
    newest = [int(part) for part in tritons.CLAIMED[-1].split(".")]
    claim = f"triton>={tritons.CLAIMED[0]},<{newest[0]}.{newest[1] + 1}; platform_system == 'Linux'"
    assert claim in (ROOT / "pyproject.toml").read_text()


def test_no_shipped_launch_spills_exceeds_shared_memory_or_loses_the_tensor_cores() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "compile_report.py"), "--check", "--sample", "4"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    if run.returncode == SKIPPED:
        pytest.skip(run.stdout.strip())
    assert run.returncode == 0, run.stdout + run.stderr
