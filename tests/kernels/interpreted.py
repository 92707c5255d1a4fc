"""Runs interpret.py in a process of its own: Triton decides when it is imported whether it interprets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def interpret(*arguments: str) -> dict:
    """The outcome of interpret.py."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "interpret.py"), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])
