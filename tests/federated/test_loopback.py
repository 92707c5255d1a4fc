"""The processes of a federation on one machine: none outlives the command, and no old result passes for a new one."""

import inspect
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

import pytest
from small_runs import PRIVATE

from ffalora.adapters import CheckpointError
from ffalora.cli import main
from ffalora.config import to_yaml
from ffalora.federated.flower import loopback
from ffalora.federated.flower.loopback import Loopback, run_on_loopback
from ffalora.federated.flower.output import SERVER
from ffalora.federated.flower.policy import load_policy
from ffalora.files.locks import locked

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to see who is running")

COMMAND = """
import signal, sys, time
from pathlib import Path
from ffalora.federated.flower import loopback
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


@pytest.mark.long
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


def test_a_server_whose_process_ends_ends_the_command_too(tmp_path):
    (tmp_path / "logs").mkdir()
    federation = Loopback(tmp_path, {"PATH": "/usr/bin:/bin"})
    with federation:
        federation.start("superlink", ["sleep", "600"])
        with locked(tmp_path / SERVER), pytest.raises(RuntimeError, match="did not finish in 0 s"):
            federation.wait_for(tmp_path / "summary.json", 0.0)
        with pytest.raises(RuntimeError, match=r"the server's process ended; .* go on with --resume"):
            federation.wait_for(tmp_path / "summary.json", 60.0)
        (tmp_path / "summary.json").write_text("{}")
        federation.wait_for(tmp_path / "summary.json", 60.0)


def test_a_federation_may_take_as_long_as_it_needs_once_its_server_began(tmp_path, monkeypatch):
    (tmp_path / "logs").mkdir()
    monkeypatch.setattr(loopback, "_SECONDS_TO_BEGIN", 0.0)
    federation = Loopback(tmp_path, {"PATH": "/usr/bin:/bin"})
    with federation:
        federation.start("superlink", ["sleep", "600"])
        with pytest.raises(RuntimeError, match="did not finish in 0 s"):
            federation.wait_for(tmp_path / "summary.json", math.inf)
        with locked(tmp_path / SERVER):
            Timer(1.0, (tmp_path / "summary.json").write_text, ["{}"]).start()
            federation.wait_for(tmp_path / "summary.json", math.inf)
    assert inspect.signature(run_on_loopback).parameters["wait"].default == math.inf


def test_the_app_of_the_simulation_engine_has_clients_without_sites_and_says_what_they_allow(small, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(to_yaml(small(clients__count=2, **PRIVATE)))
    for options, module in (([], "client"), (["--ray"], "virtual")):
        with pytest.raises(SystemExit) as done:
            main(["flower", str(tmp_path / "run.yaml"), "--output", str(tmp_path / module), "--app-only", *options])
        assert done.value.code == 0
        assert f"{module}.client_app" in (tmp_path / module / "app" / "federation_client.py").read_text()
    assert load_policy(tmp_path / "virtual" / "policy.yaml").noise == "secure"
    assert not (tmp_path / "client" / "policy.yaml").exists()
