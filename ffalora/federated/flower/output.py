"""The server's folder: what is in it beside what every run has, and whether a federation may use it."""

from __future__ import annotations

from pathlib import Path

from ...config import Config
from ...runs.folder import SUMMARY

#: Where a server that was stopped by an error says which.
FAILURE = "failure.txt"
#: Its lock is held as long as the server's process is there.
SERVER = "server"
#: What sites on the server's own machine allow.
POLICY = "policy.yaml"


def check_federation(config: Config, folder: Path, resume: bool) -> None:
    """What is refused before sites are waited for.

    Raises:
        CheckpointError: a federation that is finished. ConfigError, CheckpointError: see
        :func:`~ffalora.federated.simulate.check_beginning`.
    """
    from ...adapters import CheckpointError
    from ..simulate import check_beginning

    if (folder / SUMMARY).exists():
        raise CheckpointError(f"{folder} holds a finished federation; choose another folder (--output)")
    check_beginning(config, folder, resume)
