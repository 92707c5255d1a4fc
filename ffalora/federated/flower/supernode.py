"""Flower's SuperNode, which looks for messages more often while a federation is at work, and answers them sooner.

Flower's own asks its SuperLink every three seconds and has no option for it: a short round waits that long for each of
its messages. This one asks at once after a message, and ever less often while none comes (``pause_after``), and has
``superexec.py`` start the processes that answer.

    python -m ffalora.federated.flower.supernode OPTIONS_OF_FLOWER_SUPERNODE
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from typing import Any

#: Seconds between two looks for a message: the shortest, and the longest, which is Flower's own.
SHORTEST, LONGEST = 0.1, 3.0
#: Modules of Flower that ``superexec.py`` reads.
_FLOWERS = "flwr.supercore.superexec.executor.subprocess_executor", "flwr.supernode.runtime.run_clientapp"


def pause_after(waited: float) -> float:
    """Seconds until the next look for what one has waited for so long: never more than a fifth of the wait too late."""
    return min(LONGEST, max(SHORTEST, waited / 5))


class Clock:
    """``time`` for the module of Flower's SuperNode: sleeps less long, and is whatever else it is asked for.

    That module sleeps for less than a second while a message is at work, and for ``LONGEST`` where none is there.
    """

    def __init__(self) -> None:
        self._at_work = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        """Sleeps for ``seconds``, or until it is time to look again."""
        now = time.monotonic()
        if seconds < LONGEST:
            self._at_work = now
        time.sleep(min(seconds, pause_after(now - self._at_work)))


class Commands:
    """``subprocess`` for that module, which starts nothing but ``flower-superexec``."""

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)

    def Popen(self, command: list[str]) -> subprocess.Popen:
        """Starts this package's in its place."""
        return subprocess.Popen([sys.executable, "-m", f"{__package__}.superexec", *command[1:]])


def main() -> None:
    """As ``flower-supernode``, whose options it takes; where Flower has moved what this leans on, messages are answered
    as it does.
    """
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode

    start_client_internal.time = Clock()
    if all(importlib.util.find_spec(name) for name in _FLOWERS):
        start_client_internal.subprocess = Commands()
    flower_supernode()


if __name__ == "__main__":
    main()
