"""The processes of a federation on one machine: none outlives the command, and no old result passes for a new one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ffalora.adapters import CheckpointError
from ffalora.federated.flower.loopback import run_on_loopback

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to see who is running")

COMMAND = """
import signal, sys, time
from pathlib import Path
from ffalora.federated.flower.loopback import Loopback

signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background of a shell ignores it
folder = Path(sys.argv[1])
(folder / "logs").mkdir()
federation = Loopback(folder, {"PATH": "/usr/bin:/bin"})
apart = "import os, subprocess, sys, time; subprocess.Popen(['sleep', '600'], start_new_session=True); time.sleep(600)"
federation.start("link", [sys.executable, "-c", apart])
print(federation.environment["FFALORA_FEDERATION"], flush=True)
if sys.argv[2] == "close":
    time.sleep(1)
    federation.close()
else:
    time.sleep(600)
"""


def running(mark):
    """Processes of the federation ``mark`` that have not ended."""
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"FFALORA_FEDERATION={mark}".encode() in place.read_bytes().split(b"\0"):
                found.append(int(place.parent.name))
        except OSError:
            continue
    return found


def wait_until(holds, seconds=60):
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.1)
    return holds()


@pytest.mark.parametrize("end", ["SIGTERM", "SIGINT", "SIGKILL", "close"])
def test_no_process_of_a_federation_outlives_the_command_however_it_ends(tmp_path, end):
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(tmp_path), end],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as command:
        mark = command.stdout.readline().strip()
        assert wait_until(lambda: len(running(mark)) >= 2), "a process and one that it started in a session of its own"
        if end != "close":
            os.kill(command.pid, getattr(signal, end))
        assert wait_until(lambda: not running(mark))
        command.wait(60)


def test_a_folder_with_a_finished_federation_is_refused(small, tmp_path):
    (tmp_path / "summary.json").write_text('{"epsilon": 5.998}')
    with pytest.raises(CheckpointError, match="holds a finished federation; choose another folder"):
        run_on_loopback(small(), tmp_path)
