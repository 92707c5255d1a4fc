"""What earlier runs spent, read from the files that they left."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .accounting import LedgerMismatch
from .ledger_files import LEDGER_FILE, load_ledger
from .spent import Spent, largest, spent_from

logger = logging.getLogger(__name__)
STATEMENT = "privacy.json"


def read_prior(paths: Sequence[str | Path], is_secure: bool = False) -> tuple[Spent, ...]:
    """Everything that the runs of several files spent, one after another on the same data.

    Args:
        paths: ``privacy.json`` of a run, a ledger's file, or a folder that holds one of either kind or several ledgers.
            The clients of one run hold different records; which of them a record was with is not known, so the most
            that any of them spent is taken.
        is_secure: whether the run that reads them is; a simulation protected nothing that it could go on from.

    Raises:
        LedgerMismatch: a file that cannot be read or says nothing of what was spent, or a simulation before a secure
            run. A ledger that does not say under which noise it was charged (of an earlier version, or of a loop that
            did not tell) counts as secure, with a warning: left out, what it spent would be counted nowhere. Units that
            do not compose are refused where the ledger is made.
    """
    history: tuple[Spent, ...] = ()
    for path in map(Path, paths):
        history += _of_one_run(path, is_secure)
    return history


def _of_one_run(path: Path, is_secure: bool) -> tuple[Spent, ...]:
    if path.is_dir():
        if (path / STATEMENT).exists():
            return _of_statement(path / STATEMENT, is_secure)
        named = (LEDGER_FILE, "checkpoint/ledgers/*.json", "*.json")
        ledgers = next((found for each in named if (found := sorted(path.glob(each)))), [])
        if not ledgers:
            raise LedgerMismatch(f"prior: {path} holds neither {STATEMENT} nor ledgers; name a run's folder or file")
        return largest(_of_ledger(ledger, is_secure) for ledger in ledgers)
    try:
        is_statement = "clients" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise LedgerMismatch(f"prior: cannot read {path}: {error}") from None
    return (_of_statement if is_statement else _of_ledger)(path, is_secure)


def _of_ledger(path: Path, is_secure: bool) -> tuple[Spent, ...]:
    ledger = load_ledger(path)
    if is_secure and ledger.steps_taken:
        if ledger.noise is None:
            logger.warning(
                "prior: %s does not say whether its noise was secure, and is counted as if it was; if it was a "
                "simulation, nothing bounds what it revealed: leave it out if nothing of it was released",
                path,
            )
        _check_no_simulation(path, ledger.noise == "seeded", is_secure)
    return ledger.history


def _of_statement(path: Path, is_secure: bool) -> tuple[Spent, ...]:
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        clients, is_simulation = said["clients"], said["simulation"]
        histories = [[spent_from(part) for part in client["history"]] for client in clients]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LedgerMismatch(
            f"prior: {path} does not say what each client spent ({type(error).__name__}: {error}); name the ledgers' "
            "files instead"
        ) from None
    if not histories:
        raise LedgerMismatch(f"prior: {path} is of a run without privacy: nothing bounds what it revealed")
    _check_no_simulation(path, is_simulation, is_secure)
    return largest(histories)


def _check_no_simulation(path: Path, is_simulation: bool, is_secure: bool) -> None:
    if is_simulation and is_secure:
        raise LedgerMismatch(
            f"prior: {path} is of a simulation, whose seeded noise anybody with the seed can subtract: its ε is no "
            "bound that a secure run could add to. Leave it out if nothing of it was released"
        )
