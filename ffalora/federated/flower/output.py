"""The server's folder: what is in it beside what every run has, and whether a federation may use it."""

from __future__ import annotations

from pathlib import Path

from ...runs.folder import CHECKPOINT, SUMMARY

#: Where a server that was stopped by an error says which.
FAILURE = "failure.txt"
#: Its lock is held as long as the server's process is there.
SERVER = "server"
#: What sites on the server's own machine allow.
POLICY = "policy.yaml"


def check_folder(folder: Path, resume: bool) -> None:
    """Refuses a folder that holds a run, unless that is to be continued and can be.

    Raises:
        CheckpointError: with the remedy.
    """
    from ...adapters import CheckpointError

    if (folder / SUMMARY).exists():
        raise CheckpointError(f"{folder} holds a finished federation; choose another folder (--output)")
    if (folder / CHECKPOINT).exists() and not resume:
        raise CheckpointError(
            f"{folder} holds a federation already; continue it with --resume, or choose another folder"
        )
