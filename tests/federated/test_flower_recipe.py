"""The recipe of docs/flower.md for several machines, as it is written, on one: TLS, keys, a server that comes back."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import PRIVATE, save_texts

from ffalora.config import to_yaml

pytest.importorskip("flwr", reason="Flower is not installed: pip install 'ffalora[flower]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PAGE = Path(__file__).parents[2] / "docs" / "flower.md"


def commands():
    """The commands of the page's recipe in order, and what goes into Flower's configuration."""
    section = PAGE.read_text().split("## On several machines")[1]
    blocks = re.findall(r"(?:^ {8}.*\n)+", section, flags=re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    toml = [line for line in lines if line.startswith("[superlink") or " = " in line]
    return [line for line in lines if line not in toml], "\n".join(toml)


class Machine:
    """A folder that stands for every machine of the recipe."""

    def __init__(self, folder, config):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder, self.running = folder, []
        (folder / "etc").mkdir()
        (folder / "etc" / "policy.yaml").write_text("max_epsilon: null\n")
        save_texts(folder / "own.csv", rows=60)
        (folder / "federation.yaml").write_text(to_yaml(config))
        self.names = {
            "server.example.org": "localhost",
            "8000": str(port),
            "/var/lib/ffalora": str(folder / "site"),
            "/data/own.csv": str(folder / "own.csv"),
            "/etc/ffalora/ca.pem": str(folder / "ca.pem"),
            "/etc/ffalora": str(folder / "etc"),
        }
        tools = folder / "tools"
        tools.mkdir()
        (tools / "ffalora").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ffalora "$@"\n')
        (tools / "ffalora").chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "FLWR_HOME": str(folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
        }

    def own(self, text):
        """A text of the page with this machine's names."""
        return re.sub("|".join(map(re.escape, self.names)), lambda found: self.names[found[0]], text)

    def run(self, line):
        """Runs a command of the page; what stays (the server, a site) is left in the background."""
        stays = line.startswith(("flower-superlink", "ffalora site"))
        options = {"cwd": self.folder, "env": self.environment, "shell": True, "text": True}
        if not stays:
            done = subprocess.run(self.own(line), capture_output=True, check=False, **options)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            return None
        with open(self.folder / f"{line.split()[0]}.log", "a") as log:
            process = subprocess.Popen(
                "exec " + self.own(line), stdout=log, stderr=log, start_new_session=True, **options
            )
        self.running.append(process)
        if line.startswith("flower-superlink"):
            self.wait(lambda: socket.socket().connect_ex(("127.0.0.1", int(self.names["8000"]))) == 0, 60)
        return process

    def wait(self, holds, seconds=240):
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.2)

    def logs(self):
        paths = [*self.folder.glob("*.log"), *self.folder.glob("site/logs/*.log"), *self.folder.glob("runs/*/failure*")]
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in paths)

    def close(self):
        for process in self.running[::-1]:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(30)


@pytest.fixture
def machine(small, tmp_path):
    secure = PRIVATE | {"privacy__noise": "secure", "privacy__accountant": "rdp"}
    made = Machine(tmp_path, small(clients__count=1, federation__rounds=4, federation__weighting="uniform", **secure))
    yield made
    made.close()


def test_the_recipe_of_the_page_runs_as_written_and_goes_on_after_the_server_was_killed(machine):
    lines, configuration = commands()
    assert [line.split()[0] for line in lines].count("flwr") == 3 and "[superlink.federation]" in configuration
    (machine.folder / "home").mkdir()
    (machine.folder / "home" / "config.toml").write_text(machine.own(configuration))
    *steps, write_again, run_again = lines
    for line in steps:
        process = machine.run(line)
        server = (line, process) if line.startswith("flower-superlink") else locals().get("server")
    output = machine.folder / "runs" / "flower"
    machine.wait(lambda: (output / "metrics.jsonl").exists())
    os.killpg(server[1].pid, signal.SIGKILL)
    machine.wait(lambda: server[1].poll() is not None)
    completed = len((output / "metrics.jsonl").read_text().splitlines())
    assert completed < 4 and not (output / "summary.json").exists()
    machine.run(server[0])
    machine.run(write_again)
    machine.run(run_again)
    machine.wait(lambda: (output / "summary.json").exists())
    assert not (output / "failure.txt").exists()  # what the killed server's process may have left
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2, 3, 4], machine.logs()
    ledger = json.loads((machine.folder / "site" / "0.json").read_text())
    assert ledger["steps_taken"] >= 2 * sum(not row["failed"] for row in rows)
    assert json.loads((output / "privacy.json").read_text())["max_epsilon"] > 0
