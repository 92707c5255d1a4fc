"""A whole federation on this machine: a SuperLink, one SuperNode a client, each a process of its own, on loopback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...adapters import CheckpointError
from ...config import Config, ConfigError, to_yaml
from ...runs.folder import SUMMARY
from .policy import SitePolicy, save_policy
from .rounds import FAILURE
from .watchdog import MARK

_LINK = "loopback"
_APP = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "ffalora-federation"
version = "1.0.0"
description = "A federation of ffalora"
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "local"

[tool.flwr.app.components]
serverapp = "federation_app:server_app"
clientapp = "federation_app:client_app"

[tool.flwr.app.config]
"""
_MODULE = """\"\"\"The apps of ffalora.\"\"\"

from ffalora.federated.flower import app

client_app = app.client_app
server_app = app.server_app
"""


def write_app(folder: Path, config: Config, output: Path, secagg_range: float | None, timeout: float) -> None:
    """The Flower app folder of a federation, for ``flwr run``: the configuration, and where the server writes."""
    folder.mkdir(parents=True, exist_ok=True)
    run = {
        "ffalora": to_yaml(config),
        "output": str(output.resolve()),
        "secagg": secagg_range is not None,
        "secagg-range": float(secagg_range or 0.0),
        "timeout": float(timeout),
    }
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in run.items()]
    (folder / "pyproject.toml").write_text(_APP + "".join(lines))
    (folder / "federation_app.py").write_text(_MODULE)


def run_on_loopback(
    config: Config,
    output: Path,
    secagg_range: float | None = None,
    shared_streams: bool = False,
    timeout: float = 600.0,
    wait: float = 3600.0,
) -> None:
    """Runs a federation to its end in separate processes; logs are in the output's ``logs`` folder.

    Args:
        config: its ``clients.count`` says how many SuperNodes.
        output: the server's folder; each client's is ``output/clients/ID``.
        secagg_range: aggregate securely, quantising within ± this.
        shared_streams: have the sites allow seeded noise, which all sides know, for comparisons with the simulator.
        timeout: seconds that a round waits for answers.
        wait: seconds for the whole run.

    Raises:
        ConfigError: Flower is not installed, or ``clients.count`` is not set. CheckpointError: the folder holds a
        finished run. RuntimeError: the run failed; says where the logs are.
    """
    count = config.clients.count
    if count is None:
        raise ConfigError("clients.count is not set: it says how many SuperNodes to start")
    if (output / SUMMARY).exists():
        raise CheckpointError(f"{output} holds a finished federation; choose another folder (--output)")
    with loopback(output, count, demonstration_policy(config, shared_streams)) as federation:
        federation.submit(config, output, secagg_range, timeout)
        federation.wait_for(output / SUMMARY, wait)


def demonstration_policy(config: Config, shared_streams: bool) -> SitePolicy:
    """What the sites on this machine allow: whatever this configuration asks for, since one person wrote both; seeded
    noise only where that is asked for by name.
    """
    return SitePolicy(
        unit=config.privacy.unit if config.privacy.unit in ("none", "client") else "sample",
        noise="seeded" if shared_streams else "secure",
        max_epsilon=None,
        max_delta=config.privacy.delta,
        reports=["samples", "epsilon"],
    )


class Loopback:
    """The running processes: submits runs, waits for files, kills a SuperNode on request (for tests of faults)."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        mark = uuid.uuid4().hex
        self.folder, self.environment = folder, environment | {MARK: mark}
        self.processes: dict[str, subprocess.Popen] = {}
        script = Path(__file__).with_name("watchdog.py")
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", str(script), mark], stdin=subprocess.PIPE, start_new_session=True
        )

    def close(self) -> None:
        """Ends every process, and whatever these started."""
        for name in list(self.processes)[::-1]:
            self.stop(name)
        self._watchdog.communicate()

    def start(self, name: str, command: list[str]) -> None:
        """Starts a process of this federation, in a process group of its own."""
        log = open(self.folder / "logs" / f"{name}.log", "ab")
        self.processes[name] = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=self.environment,
            start_new_session=True,
        )  # fmt: skip
        log.close()
        if self._watchdog.stdin is not None:
            self._watchdog.stdin.write(f"{self.processes[name].pid}\n".encode())
            self._watchdog.stdin.flush()

    def stop(self, name: str, signal: int = 15) -> None:
        """Ends a process and everything it started."""
        process = self.processes.pop(name)
        try:
            os.killpg(process.pid, signal)
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
        except ProcessLookupError:
            process.wait()

    def submit(self, config: Config, output: Path, secagg_range: float | None, timeout: float) -> None:
        """Hands the run to the SuperLink."""
        app = self.folder / "app"
        write_app(app, config, output, secagg_range, timeout)
        done = subprocess.run(
            [_tool("flwr"), "run", str(app), _LINK], env=self.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"flwr run failed: {(done.stdout + done.stderr)[-2000:]}")

    def wait_for(self, file: Path, seconds: float) -> None:
        """Waits until the run has written ``file``.

        Raises:
            RuntimeError: it did not in time, the SuperLink ended, or the server app was stopped by an error.
        """
        deadline, failure = time.monotonic() + seconds, file.with_name(FAILURE)
        while not file.exists():
            if failure.exists():
                raise RuntimeError(f"the federation was stopped: {failure.read_text().strip().splitlines()[-1]}")
            if time.monotonic() > deadline or self.processes["superlink"].poll() is not None:
                raise RuntimeError(f"the federation did not finish in {seconds:g} s; see {self.folder / 'logs'}")
            time.sleep(0.5)


@contextmanager
def loopback(folder: Path, clients: int, policy: SitePolicy) -> Iterator[Loopback]:
    """A SuperLink and ``clients`` SuperNodes, each with this policy. All of them are stopped at the end of the block,
    or with this process, if that is ended or killed within it.
    """
    tools = os.path.dirname(_tool("flwr"))
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    (folder / FAILURE).unlink(missing_ok=True)
    home = folder / "flower-home"
    home.mkdir(exist_ok=True)
    link, *ports = _free_ports(clients + 1)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{_LINK}"\n\n[superlink.{_LINK}]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    terms = (folder / "policy.yaml").resolve()
    save_policy(policy, terms)
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {
        "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "PYTHONPATH": paths,
        "PATH": tools + os.pathsep + os.environ.get("PATH", ""),
    }  # fmt: skip
    federation = Loopback(folder, environment)
    try:
        federation.start(
            "superlink",
            [_tool("flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(link),
             "--disable-runtime-dependency-installation"],
        )  # fmt: skip
        _wait_for_port(link)
        for client, port in enumerate(ports):
            own = (folder / "clients" / str(client)).resolve()
            own.mkdir(parents=True, exist_ok=True)
            federation.start(
                f"supernode-{client}",
                [_tool("flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{link}", "--host", "127.0.0.1",
                 "--port", str(port), "--node-config", f'client={client} folder="{own}" policy="{terms}"'],
            )  # fmt: skip
        yield federation
    finally:
        federation.close()


def _tool(name: str) -> str:
    """One of Flower's commands: beside this Python, or on the path."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ConfigError(f"{name} was not found; install Flower: pip install 'ffalora[flower]'")
    return found


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _wait_for_port(port: int, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError(f"the SuperLink did not open 127.0.0.1:{port} within {seconds:g} s; see its log")
