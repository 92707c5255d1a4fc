"""A whole federation on this machine: a SuperLink, and one SuperNode a client, each a process of its own, on loopback;
or the SuperLink alone, with Flower's simulation engine (Ray) for the clients.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...config import Config, ConfigError, to_yaml
from ...files.locks import lock_of, was_let_go
from ...runs.folder import SUMMARY
from .output import FAILURE, POLICY, SERVER, check_federation
from .policy import SitePolicy, save_policy
from .processes import Processes, environment, tool

_LINK = "loopback"
_SECONDS_TO_BEGIN = 600.0  # of the server's process, which Flower starts
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
serverapp = "federation_server:server_app"
clientapp = "federation_client:client_app"

[tool.flwr.app.config]
"""
#: Flower reads these without running them, and looks for an assignment.
_MODULES = {
    "federation_client": "from ffalora.federated.flower import {client}\n\nclient_app = {client}.client_app\n",
    "federation_server": "from ffalora.federated.flower import app\n\nserver_app = app.server_app\n",
}


def write_app(
    folder: Path,
    config: Config,
    output: Path,
    secagg_range: float | None,
    timeout: float,
    resume: bool = False,
    engine: bool = False,
) -> None:
    """The Flower app folder of a federation, for ``flwr run``: the configuration, and where the server writes; with
    ``engine`` for Flower's simulation engine instead of sites.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = {
        "ffalora": to_yaml(config),
        "output": str(output.resolve()),
        "resume": resume,
        "secagg": secagg_range is not None,
        "secagg-range": float(secagg_range or 0.0),
        "timeout": float(timeout),
    }
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in run.items()]
    (folder / "pyproject.toml").write_text(_APP + "".join(lines), encoding="utf-8")
    for name, text in _MODULES.items():
        (folder / f"{name}.py").write_text(text.format(client="virtual" if engine else "client"), encoding="utf-8")


def run_on_loopback(
    config: Config,
    output: Path,
    secagg_range: float | None = None,
    shared_streams: bool = False,
    timeout: float = 600.0,
    wait: float = math.inf,
    resume: bool = False,
    engine: bool = False,
) -> None:
    """Runs a federation to its end in separate processes; logs are in the output's ``logs`` folder.

    Args:
        config: its ``clients.count`` says how many SuperNodes.
        output: the server's folder; each client's is ``output/clients/ID``.
        secagg_range: aggregate securely, quantising within ± this.
        shared_streams: have the sites allow seeded noise, which all sides know, for comparisons with the simulator.
        timeout: seconds that a round waits for answers.
        wait: seconds after which the whole run is given up.
        resume: continue what the output holds, after its last round.
        engine: have Flower's simulation engine train the clients, as many at a time as this machine has cores.

    Raises:
        ConfigError: Flower (with ``engine``: Ray) is not installed, or ``clients.count`` is not set. CheckpointError:
        the folder holds a finished run, or one that is not to be continued. RuntimeError: the run failed; says where
        the logs are.
    """
    count = config.clients.count
    if count is None:
        raise ConfigError("clients.count is not set: it says how many SuperNodes to start")
    if engine and importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "Flower's simulation engine needs Ray, which is not installed: pip install 'flwr[simulation]'"
        )
    check_federation(config, output, resume)
    with loopback(output, count, demonstration_policy(config, shared_streams), engine) as federation:
        federation.submit(config, output, secagg_range, timeout, resume)
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


class Loopback(Processes):
    """The running processes of a federation: submits runs, and waits for what they write.

    Args:
        virtual: how many clients Flower's simulation engine has; None where they are sites.
    """

    def __init__(self, folder: Path, environment: dict[str, str], virtual: int | None = None):
        super().__init__(folder / "logs", environment)
        self.folder, self.virtual = folder, virtual

    def submit(
        self, config: Config, output: Path, secagg_range: float | None, timeout: float, resume: bool = False
    ) -> None:
        """Hands the run to the SuperLink."""
        app, engine = self.folder / "app", self.virtual is not None
        write_app(app, config, output, secagg_range, timeout, resume, engine)
        command = [tool("flwr"), "run", str(app), _LINK]
        if engine:
            command += ["--federation-config", f"num-supernodes={self.virtual} client-resources-num-cpus=1"]
        done = subprocess.run(
            command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"flwr run failed: {(done.stdout + done.stderr)[-2000:]}")

    def wait_for(self, file: Path, seconds: float) -> None:
        """Waits until the run has written ``file``; a site that ends is started again.

        Raises:
            RuntimeError: it did not in time, the server's process did not begin, it or the SuperLink ended, or an error
            stopped the run.
        """
        began, failure, gone = time.monotonic(), file.with_name(FAILURE), 0
        server = file.with_name(SERVER)
        while not file.exists():
            gone = gone + 1 if was_let_go(server) else 0
            waited = time.monotonic() - began
            if failure.exists():
                *_, said = failure.read_text(encoding="utf-8").strip().splitlines()
                raise RuntimeError(f"the federation was stopped: {said}")
            if waited > (seconds if lock_of(server).exists() else min(seconds, _SECONDS_TO_BEGIN)):
                raise RuntimeError(f"the federation did not finish in {waited:.0f} s; see {self.folder / 'logs'}")
            if self.processes["superlink"].poll() is not None:
                raise RuntimeError(f"the SuperLink ended; see {self.folder / 'logs'}, and go on with --resume")
            if gone > 1:  # at first its lock may be there, and not yet taken
                raise RuntimeError(f"the server's process ended; see {self.folder / 'logs'}, and go on with --resume")
            self.bring_back(but="superlink")
            time.sleep(0.5)


@contextmanager
def loopback(folder: Path, clients: int, policy: SitePolicy, engine: bool = False) -> Iterator[Loopback]:
    """A SuperLink and ``clients`` SuperNodes (``engine``: none), each with this policy. All of them are stopped at the
    end of the block, or with this process, if that is ended or killed within it.
    """
    for left in (folder / FAILURE, lock_of(folder / SERVER)):  # by an earlier command
        left.unlink(missing_ok=True)
    home = folder / "flower-home"
    home.mkdir(parents=True, exist_ok=True)
    link, *ports = _free_ports(clients + 1)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{_LINK}"\n\n[superlink.{_LINK}]\naddress = "127.0.0.1:{link}"\ninsecure = true\n',
        encoding="utf-8",
    )
    save_policy(policy, (folder / POLICY).resolve())
    federation = Loopback(folder, environment(FLWR_HOME=str(home)), clients if engine else None)
    with federation:
        command = [tool("flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(link)]
        command += ["--disable-runtime-dependency-installation", *(["--simulation"] if engine else [])]
        federation.start("superlink", command)
        _wait_for_port(link)
        for client, port in enumerate([] if engine else ports):
            _start_site(federation, client, clients, link, port)
        yield federation


def _start_site(federation: Loopback, client: int, clients: int, link: int, port: int) -> None:
    """A site, which listens at ``port`` and takes part in what the SuperLink at ``link`` does."""
    own = (federation.folder / "clients" / str(client)).resolve()
    own.mkdir(parents=True, exist_ok=True)
    policy = str((federation.folder / POLICY).resolve())
    site = [sys.executable, "-m", "ffalora", "site", str(own), "--client", str(client), "--policy", policy, "--"]
    site += ["--insecure", "--superlink", f"127.0.0.1:{link}", "--host", "127.0.0.1", "--port", str(port)]
    threads = max(1, (os.cpu_count() or 1) // clients)  # the sites here share the cores
    federation.start(f"site-{client}", site, {"OMP_NUM_THREADS": str(threads)})


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
