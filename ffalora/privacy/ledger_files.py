"""Ledgers on the disk, one file each: charged under a lock, by what the file says and not by what a process remembers.

Two processes on one folder thus never lose a step: each adds what it takes to what is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..files.locks import locked
from .accounting import LedgerMismatch, PrivacyLedger
from .sealed import read_sealed


def load_ledger(path: Path) -> PrivacyLedger:
    """The ledger of a file.

    Raises:
        LedgerMismatch: unreadable, no ledger, or changed since it was written.
    """
    try:
        return PrivacyLedger.from_state_dict(read_sealed(path))
    except (OSError, ValueError) as error:
        raise LedgerMismatch(f"cannot read the ledger {path}: {error}; without it ε is unknown") from None


def charge_file(ledger: PrivacyLedger, path: Path) -> None:
    """Adds the steps that ``ledger`` took since it was last written to those in the file, durably, and takes over the
    sum: what other processes charged in between counts.

    Raises:
        PrivacyBudgetSpent: together they exceed what the ledger allows; the file stays as it is, and the ledger counts
            what the file says.
        LedgerMismatch: the file is damaged. OSError: it cannot be written, or is locked for too long.
    """
    with locked(path):
        written = load_ledger(path).steps_taken if path.exists() else 0
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


def charge_folder(folder: Path, ledgers: Mapping[str, PrivacyLedger]) -> None:
    """:func:`charge_file` of every ledger, ``NAME.json`` in the folder."""
    for name, ledger in ledgers.items():
        charge_file(ledger, folder / f"{name}.json")


def resume_folder(folder: Path, ledgers: Mapping[str, PrivacyLedger]) -> None:
    """:func:`resume_file` of every ledger, ``NAME.json`` in the folder."""
    for name, ledger in ledgers.items():
        resume_file(ledger, folder / f"{name}.json")
