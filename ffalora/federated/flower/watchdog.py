"""Ends the processes of a federation when the command that started them is gone, however it went.

Run as a script, with the standard library alone: it reads process ids from its standard input, one a line (with a minus
those that were ended), and waits for the end of the input, which comes when the last process that could write to it has
ended, killed ones included. Then it ends the groups of those processes and, on Linux, whatever else they started
(Flower puts some of it in sessions of its own): processes whose environment holds ``FFALORA_FEDERATION`` with the value
that is this script's argument.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

MARK = "FFALORA_FEDERATION"
_PATIENCE = 10.0


def marked(value: str) -> list[int]:
    """Ids of running processes of the federation ``value``; none where the system does not show environments."""
    wanted, found = f"{MARK}={value}".encode(), []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            if int(place.parent.name) != os.getpid() and wanted in place.read_bytes().split(b"\0"):
                found.append(int(place.parent.name))
        except OSError:  # it ended, or is another user's
            continue
    return found


def end(groups: list[int], value: str) -> None:
    """Asks the groups and the marked processes to end, and kills those that do not within ten seconds."""
    deadline, asked = time.monotonic() + _PATIENCE, set()
    while groups or marked(value):
        is_late = time.monotonic() > deadline
        for send, processes in ((os.killpg, groups), (os.kill, marked(value))):
            for process in processes:
                if is_late or process not in asked:
                    _signal(send, process, signal.SIGKILL if is_late else signal.SIGTERM)
                    asked.add(process)
        if is_late:
            return
        time.sleep(0.2)
        groups = [group for group in groups if _signal(os.killpg, group, 0)]


def _signal(send: Callable[[int, int], None], process: int, number: int) -> bool:
    """Sends a signal; whether there was somebody to get it."""
    try:
        send(process, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    running: dict[int, None] = {}
    for line in sys.stdin:
        if int(line) > 0:
            running[int(line)] = None
        else:
            running.pop(-int(line), None)
    end(list(running), sys.argv[1])
