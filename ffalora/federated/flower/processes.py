"""Processes that belong together: started, brought back, and ended with whoever started them."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from ...config import ConfigError
from .watchdog import MARK

logger = logging.getLogger(__name__)
_SHORTEST, _LONGEST = 1.0, 60.0  # seconds before a process that ended is started again


class Processes:
    """Processes of one command, each with a log in ``logs``; a watchdog ends them when this process is gone."""

    def __init__(self, logs: Path, environment: dict[str, str]):
        mark = uuid.uuid4().hex
        self.logs, self.environment = logs, environment | {MARK: mark}
        self.processes: dict[str, subprocess.Popen] = {}
        self._commands: dict[str, tuple[Sequence[str], dict[str, str]]] = {}
        self._rests: dict[str, tuple[float, float]] = {}
        logs.mkdir(parents=True, exist_ok=True)
        script = Path(__file__).with_name("watchdog.py")
        unmarked = {name: value for name, value in os.environ.items() if name != MARK}  # outlives those who are marked
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", str(script), mark], stdin=subprocess.PIPE, start_new_session=True, env=unmarked
        )

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every process, and whatever these started."""
        for name in list(self.processes)[::-1]:
            self.stop(name)
        self._watchdog.communicate()

    def start(self, name: str, command: Sequence[str], extra: dict[str, str] | None = None) -> None:
        """Starts a process in a group of its own; ``extra`` is of its environment alone."""
        extra = extra or {}
        with open(self.logs / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self.environment | extra,
                start_new_session=True,
            )
        self._commands[name] = (command, extra)
        self._rests[name] = (time.monotonic(), self._rests.get(name, (0.0, _SHORTEST))[1])
        self._tell_watchdog(self.processes[name].pid)

    def stop(self, name: str) -> None:
        """Ends a process and everything it started."""
        process = self.processes.pop(name)
        try:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        except ProcessLookupError:
            process.wait()
        self._tell_watchdog(-process.pid)

    def bring_back(self, but: str = "") -> None:
        """Starts those that ended by themselves again, ``but`` one: after a second, and twice as long each time that
        one ends within a minute, up to a minute.
        """
        for name, process in list(self.processes.items()):
            status = process.poll()
            if status is None or name == but:
                continue
            began, rest = self._rests[name]
            self.stop(name)  # what it started may still be there
            rest = _SHORTEST if time.monotonic() - began > _LONGEST else rest
            logger.warning("%s ended (status %d); it is started again in %g s", name, status, rest)
            time.sleep(rest)
            self._rests[name] = (0.0, min(_LONGEST, 2 * rest))
            self.start(name, *self._commands[name])

    def _tell_watchdog(self, process: int) -> None:
        if self._watchdog.stdin is not None:
            self._watchdog.stdin.write(f"{process}\n".encode())
            self._watchdog.stdin.flush()


def tool(name: str) -> str:
    """One of Flower's commands: beside this Python, or on the path.

    Raises:
        ConfigError: Flower is not installed.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ConfigError(f"{name} was not found; install Flower: pip install 'ffalora[flower]'")
    return found


def environment(**values: str) -> dict[str, str]:
    """What Flower's processes need to find each other and this package; they look for work ten times a second."""
    return (
        os.environ
        | {
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PATH": os.path.dirname(tool("flwr")) + os.pathsep + os.environ.get("PATH", ""),
        }
        | values
    )
