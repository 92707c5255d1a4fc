"""Ledgers on the disk, one file each: charged under a lock, by what the file says and not by what a process remembers.

Two processes on one folder thus never lose a step: each adds what it takes to what is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..files.locks import locked
from .accounting import LedgerMismatch, PrivacyLedger
from .sealed import read_sealed

#: What the ledger of a single training is called in its folder, among whatever else lies there.
LEDGER_NAME = "privacy_ledger"
LEDGER_FILE = f"{LEDGER_NAME}.json"


def load_ledger(path: Path) -> PrivacyLedger:
    """The ledger of a file.

    Raises:
        LedgerMismatch: unreadable, no ledger, or changed since it was written.
    """
    try:
        return PrivacyLedger.from_state_dict(read_sealed(path))
    except (OSError, ValueError) as error:
        raise LedgerMismatch(f"cannot read the ledger {path}: {error}; without it ε is unknown") from None


def charge_file(ledger: PrivacyLedger, path: Path, charged: int = 0) -> None:
    """Adds the steps that ``ledger`` took since it was last written to those in the file, durably, and takes over the
    sum: what other processes charged in between counts.

    Args:
        charged: what the data set's ledger was charged for this file (see :meth:`PrivacyLedger.steps`).

    Raises:
        PrivacyBudgetSpent: together they exceed what the ledger allows; the file stays as it is, and the ledger counts
            what the file says.
        LedgerMismatch: the file is damaged, of other data or other terms, or counts less than was charged for it.
        OSError: it cannot be written, or is locked for too long.
    """
    with locked(path):
        written = 0
        if path.exists():
            stored = load_ledger(path)
            ledger.check_terms(stored)
            written, ledger.noise = stored.steps_taken, ledger.noise or stored.noise
        check_not_turned_back(ledger, path, written, charged)
        if ledger.correlation is not None and written != ledger.steps_written:
            raise LedgerMismatch(
                f"{path} counts {written} steps where this process knows of {ledger.steps_written}: another one trains "
                "on it, and noise that is correlated in each of them is not one release. Let one of them end"
            )
        fresh = ledger.steps_taken - ledger.steps_written
        ledger.steps_taken = ledger.steps_written = written
        if fresh > 0:
            ledger.charge(fresh)
            ledger.save(path)
            ledger.steps_written = ledger.steps_taken


def check_not_turned_back(ledger: PrivacyLedger, path: Path, written: int, charged: int) -> None:
    """A file counts what the data set's ledger was charged for it, or more.

    Args:
        written: steps that the file counts; charged: as in :func:`charge_file`.

    Raises:
        LedgerMismatch: it counts less, and what would leave now was charged nowhere.
    """
    if charged > ledger.steps(written).steps:
        raise LedgerMismatch(
            f"{ledger.name}: {path} counts {written} steps, but the ledger of its data set was charged {charged} for "
            "this run: the file was changed, removed or put back from an old copy, or a copy of its folder trains as "
            "well. Nothing more was released; go on with the copy that counts them all, or start a new run in another "
            "folder (what this one spent stays charged)"
        )


def resume_file(ledger: PrivacyLedger, path: Path) -> None:
    """Charges whatever the file says was charged: after the last checkpoint, or before the first one.

    Raises:
        LedgerMismatch: unreadable, missing although steps were taken, or of other data or other terms.
    """
    if not path.exists() and ledger.steps_taken == 0:
        return
    stored = load_ledger(path)
    ledger.resume(stored.state_dict())
    ledger.steps_written = stored.steps_taken


def charge_folder(folder: Path, ledgers: Mapping[str, PrivacyLedger], charged: Mapping[str, int]) -> None:
    """:func:`charge_file` of every ledger, ``NAME.json`` in the folder; ``charged`` by name, 0 where it is not."""
    for name, ledger in ledgers.items():
        charge_file(ledger, folder / f"{name}.json", charged.get(name, 0))


def resume_folder(folder: Path, ledgers: Mapping[str, PrivacyLedger]) -> None:
    """:func:`resume_file` of every ledger, ``NAME.json`` in the folder."""
    for name, ledger in ledgers.items():
        resume_file(ledger, folder / f"{name}.json")
