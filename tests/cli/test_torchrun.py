"""Verbs under torchrun: one run, one folder, one output; a clear end when a process dies or is interrupted."""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from ranks import on_ranks
from small_runs import PRIVATE

from ffalora.cli import main
from ffalora.config import to_yaml
from ffalora.runs.folder import LEDGERS, METRICS
from ffalora.training.workers import joined

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def config(small, tmp_path, monkeypatch):
    """A file that describes a private run of one site; the test runs beside it."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(small(**PRIVATE, clients__count=1)))
    return path


def _under_torchrun(size, arguments, monkeypatch):
    """Exit status, stdout and stderr of ``ffalora`` in each of the processes that torchrun would start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(workers):
        dist.destroy_process_group()
        names = {"RANK": workers.rank, "LOCAL_RANK": workers.rank, "WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"})
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as done:
            main(arguments)
        return done.value.code, out.getvalue(), err.getvalue()

    return on_ranks(size, run)


def test_processes_of_torchrun_share_one_run_one_folder_and_one_output(config, monkeypatch):
    (status, out, err), *others = _under_torchrun(2, ["train", str(config), "--progress"], monkeypatch)
    assert status == 0 and "report runs/run/report.html" in out and err.count("3/3") >= 1
    assert [(code, text) for code, text, _ in others] == [(0, "")] and "round" not in others[0][2]
    assert [path.name for path in Path("runs").iterdir()] == ["run"]
    assert json.loads((Path("runs/run") / LEDGERS / "0.json").read_text())["steps_taken"] == 6


def test_what_cannot_be_is_said_once_and_leaves_nothing(config, monkeypatch):
    arguments = ["train", str(config), "--data.name", "nowhere.csv"]
    found = _under_torchrun(2, arguments, monkeypatch)
    assert all(code == 2 for code, _, _ in found) and "nowhere.csv" in found[0][2]
    Path("taken").mkdir()
    shutil.copy(config, "taken/config.yaml")
    found = _under_torchrun(2, ["train", str(config), "--output", "taken"], monkeypatch)
    assert (found[0][0], found[1]) == (2, (0, "", "")) and "holds a run already" in found[0][2]
    assert not Path("runs").exists() or not any(Path("runs").iterdir())


def test_verbs_that_processes_cannot_share_are_refused(monkeypatch, capsys):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as done:
        main(["evaluate", "adapter"])
    assert done.value.code == 2
    assert "evaluate runs in one process, and torchrun (WORLD_SIZE) started 2" in capsys.readouterr().err


def test_a_group_that_a_program_initialised_is_used_and_left_open():
    def run(workers):
        with joined() as found:
            assert found == workers
        return dist.is_initialized()

    assert on_ranks(2, run) == [True, True]


def _start(config, output, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "ffalora", "train"]
    with open(f"{output}.log", "w") as log:
        return subprocess.Popen(
            [*command, str(config), "--output", str(output), "--no-progress", *arguments],
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def _children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _end(started, victim):
    if victim == "all":
        os.killpg(started.pid, signal.SIGINT)
    elif victim in ("SIGTERM", "SIGKILL"):
        os.kill(started.pid, getattr(signal, victim))
    else:
        os.kill(_children(started.pid)[victim], signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    "victim,said",
    [(0, "lost the others"), (1, "lost the others"), ("all", "--resume"), ("SIGTERM", ""), ("SIGKILL", "ends with it")],
)
def test_torchrun_ends_clearly_when_a_process_is_killed_and_the_run_goes_on(victim, said, config):
    output = Path("run")
    started = _start(config, output, "--federation.rounds", "300")
    while not (output / METRICS).exists() or len((output / METRICS).read_text().splitlines()) < 3:
        assert started.poll() is None, Path("run.log").read_text()
        time.sleep(0.05)
    children = _children(started.pid)
    _end(started, victim)
    assert started.wait(timeout=60) != 0
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert said in Path("run.log").read_text()
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    rounds = [json.loads(line) for line in (output / METRICS).read_text().splitlines()]
    ledger = json.loads((output / LEDGERS / "0.json").read_text())
    assert len(rounds) >= 3 and ledger["steps_taken"] >= 2 * len(rounds)
    again = _start(config, output, "--federation.rounds", "300", "--resume")
    while len((output / METRICS).read_text().splitlines()) < len(rounds) + 3:
        assert again.poll() is None, Path("run.log").read_text()
        time.sleep(0.05)
    os.killpg(again.pid, signal.SIGTERM)
    again.wait(timeout=60)
