"""Where a run's steps are charged: the files in its folder, and the ledger of its data set.

The order is always: charged in memory, then durably here, then the noisy result exists.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..files.atomic import write_atomically
from ..files.numbers import rounded_up
from .accounting import PrivacyBudgetSpent, PrivacyLedger
from .data_ledger import DataLedger, Records
from .ledger_files import charge_folder, check_not_turned_back, resume_folder

logger = logging.getLogger(__name__)
#: In a run's folder: what the data set's ledger knows it by.
ACCOUNT = "account"


@dataclass(frozen=True)
class Accounts:
    """A run's ledgers and where they are written.

    Attributes:
        folder: of the ledgers' files.
        data_ledger: of the data set; None where nobody keeps one.
    """

    folder: Path
    data_ledger: DataLedger | None = None

    def charge(self, ledgers: Mapping[str, PrivacyLedger]) -> None:
        """Writes down what the ledgers were charged in memory, before the noisy result exists.

        Raises:
            PrivacyBudgetSpent: with what other processes charged it would be more than is allowed. Nothing is released
                then; a ledger that was written before another refused stays charged.
            LedgerMismatch: a copy of the run's folder was charged to the same data set's ledger.
        """
        try:
            if self.data_ledger is None:
                charge_folder(self.folder, ledgers, {})
                return
            with self.data_ledger.opened():
                for some in self.data_ledger.apart(ledgers):
                    charge_folder(self.folder, some, _charged(self.data_ledger, some))
                    self.data_ledger.charge(some)
        except PrivacyBudgetSpent:
            for ledger in ledgers.values():
                ledger.steps_taken = ledger.steps_written
            raise

    def look_up(self, ledgers: Mapping[str, PrivacyLedger]) -> None:
        """Tells the ledgers what other runs have spent on the same records by now."""
        if self.data_ledger is not None:
            with self.data_ledger.opened():
                self.data_ledger.look_up(ledgers)


def open_accounts(
    ledgers: Mapping[str, PrivacyLedger],
    folder: Path,
    resume: bool,
    is_secure: bool,
    is_durable: bool = True,
    data_ledger: DataLedger | None = None,
    records: Mapping[str, Records] | None = None,
    account: Path | None = None,
    run: str = "",
    before: Accounts | None = None,
) -> Accounts:
    """Enters a run in its data set's ledger, continues what its folder says was charged, and says what is left.

    Args:
        ledgers: of the run, by name.
        folder: where their files are, ``NAME.json``.
        resume: go on from these files; without it they must not be there.
        is_secure: a run with secure noise is charged to the data set's ledger, one with seeded noise only written down.
        is_durable: whether there are files at all.
        data_ledger: of the data set, or None.
        records: for each name, a function that gives a digest of every record.
        account: the file by which the data set's ledger knows this run's folder.
        run: what people call it.
        before: accounts whose charges are in the ledgers' ``prior`` already, so that they count once.

    Raises:
        LedgerMismatch: files that cannot be read, of other data or terms, or that count less than was charged.
        PrivacyBudgetSpent: the data set's budget allows none of the clients a step.
    """
    if data_ledger is None or not is_secure:
        if data_ledger is not None:
            with data_ledger.opened():
                data_ledger.enter(_token(account or folder / ACCOUNT), run, ledgers, records or {}, is_secure)
        if resume and is_durable:
            resume_folder(folder, ledgers)
        return Accounts(folder)
    with data_ledger.opened():
        if before is not None and before.data_ledger is not None:
            data_ledger.in_prior |= before.data_ledger.own_entries
        data_ledger.enter(_token(account or folder / ACCOUNT), run, ledgers, records or {}, is_secure)
        if resume:
            resume_folder(folder, ledgers)
        for name, charged in _charged(data_ledger, ledgers).items():
            check_not_turned_back(ledgers[name], folder / f"{name}.json", ledgers[name].steps_taken, charged)
        is_told = any(ledger.trials > 1 and data_ledger.steps_of(name) for name, ledger in ledgers.items())
        data_ledger.charge(ledgers)
        data_ledger.look_up(ledgers)
    if not is_told:  # of a choice once: said of every trial it would count them
        logger.warning(_what_is_left(data_ledger, ledgers))
    if data_ledger.budget is not None and all(_is_shut_out(ledger) for ledger in ledgers.values()):
        raise PrivacyBudgetSpent(
            f"the budget of {_what_is_left(data_ledger, ledgers)}. ffalora epsilon --ledger {data_ledger.name} shows "
            "who spent it, and raises it with --target-epsilon"
        )
    return Accounts(folder, data_ledger)


def _charged(data_ledger: DataLedger, ledgers: Mapping[str, PrivacyLedger]) -> dict[str, int]:
    """What the data set's ledger was charged for each of a run's files, which must not count less. Trials of a choice
    are left out: it was charged as a whole, by another one's file.
    """
    return {name: data_ledger.steps_of(name) for name, ledger in ledgers.items() if ledger.trials == 1}


def _is_shut_out(ledger: PrivacyLedger) -> bool:
    """Whether the data set's budget allows no further step, though the run has some to take."""
    return ledger.steps_left == 0 and ledger.steps_taken < ledger.steps_allowed


def _what_is_left(data_ledger: DataLedger, ledgers: Mapping[str, PrivacyLedger]) -> str:
    """What earlier runs spent, what this run adds if it takes all its steps, and what the budget still allows."""
    before = max(data_ledger.total(ledger, 0) for ledger in ledgers.values())
    after = max(data_ledger.total(ledger, ledger.steps_allowed) for ledger in ledgers.values())
    earlier = f"earlier runs have spent ε = {rounded_up(before):.4g}" if before else "no earlier run has spent anything"
    said = f"ledger {data_ledger.name!r}: {earlier} on these records, with this run ε will be {rounded_up(after):.4g}"
    if data_ledger.budget is None:
        return said + "; no budget is set (ffalora epsilon --ledger NAME --target-epsilon ε --delta δ)"
    epsilon, delta = data_ledger.budget
    said += f" of a budget of {epsilon:g} at δ = {delta:g}"
    if after > epsilon:
        said += f", which is enough for {min(ledger.steps_left for ledger in ledgers.values())} more of its steps"
    return said


def _token(path: Path) -> str:
    """What is written in the account file, which is made if it is missing."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, secrets.token_hex(16).encode())
    return path.read_text(encoding="utf-8").strip()
