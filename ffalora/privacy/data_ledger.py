"""The ledger of a named data set: every run that trained on it, what each spent, and what is left.

A run writes down which records it holds, as keyed hashes that never leave the folder, and every step that it takes.
Runs that share records compose, and so do clients of one run; disjoint ones do not. What others spent on a record is
bounded, for each kind of step, by the most that any one of a run's records saw: exact where all records saw the same,
and too much, never too little, elsewhere. Runs with seeded noise protect nothing: they are written down, not charged.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files.atomic import write_atomically
from .accountants import epsilon_of
from .accounting import LedgerMismatch, PrivacyLedger
from .charge_log import ChargeLog
from .ledger_places import ledger_folder
from .spent import Spent, check_one_unit, spent_from

#: Digests of a client's records, computed only where a ledger wants them.
Records = Callable[[], Sequence[bytes]]


@dataclass
class Entry:
    """One client of one run.

    Attributes:
        account: of the run's folder. run: what people call the run. who: whose data.
        steps: charged so far, of a kind (a :class:`Spent`).
        max_steps: the most that it may take. delta: its δ.
        noise: 'secure', or 'seeded' (never charged).
        records: names the file that lists them. when: it began, in UTC.
    """

    account: str
    run: str
    who: str
    steps: Spent
    max_steps: int
    delta: float
    noise: str
    records: str
    when: str


#: Histories of records whose ε is computed one by one.
MOST_HISTORIES = 100


class DataLedger:
    """The ledger in a folder, made if it is missing. Several processes may use it at once.

    Raises:
        LedgerMismatch: it was changed by somebody without its key.
    """

    def __init__(self, folder: Path):
        self.folder, self.name = folder, folder.name
        self._log = ChargeLog(folder)
        self.entries: list[Entry] = []
        self.budget: tuple[float, float] | None = None
        self.in_prior: set[int] = set()
        self._own: dict[str, int] = {}
        self._meeting: dict[str, PrivacyLedger] = {}  # own ledgers that share records with others of this run
        self._age = 0
        self._looked_at: dict[str, int] = {}  # how old the log was when each name was looked up
        self._shared: dict[tuple[str, str], np.ndarray] = {}
        with self.opened():
            pass

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Holds the lock, having read what others added."""
        with self._log.opened() as added:
            for record in added:
                self._take(record)
            yield

    def set_budget(self, epsilon: float, delta: float) -> None:
        """ε that all runs together may spend on any record, at ``delta``; it may be raised or lowered later.

        Raises:
            ValueError: a value out of range.
        """
        if not (0 < epsilon < float("inf") and 0 < delta < 1):
            raise ValueError(f"epsilon must be positive and delta between 0 and 1, got {epsilon} and {delta}")
        with self.opened():
            self._add({"budget": [float(epsilon), float(delta)], "when": _now()})

    def enter(
        self,
        account: str,
        run: str,
        ledgers: Mapping[str, PrivacyLedger],
        records: Mapping[str, Records],
        is_secure: bool,
    ) -> None:
        """Writes down a run, or finds it again: an entry for each of its ledgers. Only while :meth:`opened`.

        Raises:
            LedgerMismatch: a run that protects another unit has used the same records.
        """
        for name, ledger in ledgers.items():
            kind, listed = ledger.steps(0), self._list_records(records[name]())
            noise = "secure" if is_secure else "seeded"
            wanted = (account, name, kind, listed, noise)
            same = [i for i, e in enumerate(self.entries) if _identity(e) == wanted]
            if not same:
                entry = Entry(account, run, name, kind, ledger.max_steps, ledger.delta, noise, listed, _now())
                self._add({"entry": vars(entry) | {"steps": list(kind)}})
                same = [len(self.entries) - 1]
            self._own[name] = same[0]
        self._meeting = {name: ledgers[name] for name in self._sharing(list(ledgers))}

    def apart(self, ledgers: Mapping[str, PrivacyLedger]) -> Iterator[dict[str, PrivacyLedger]]:
        """The ledgers, told what was spent, in groups to be charged one by one: alone where they share records."""
        alone = {name: ledger for name, ledger in ledgers.items() if name not in self._meeting}
        for some in (alone, *({name: ledger} for name, ledger in ledgers.items() if name in self._meeting)):
            self.look_up(some)
            yield some
        self.look_up(self._meeting)

    @property
    def own_entries(self) -> set[int]:
        """Numbers of the entries of this run, and of those that its ledgers' ``prior`` counts."""
        return self.in_prior | set(self._own.values())

    def steps_of(self, name: str) -> int:
        """What has been charged to one of the own entries: steps, or releases where several steps are one."""
        return self.entries[self._own[name]].steps.steps

    def look_up(self, ledgers: Mapping[str, PrivacyLedger]) -> None:
        """Tells each ledger what other runs, and other clients of this one, have spent on its records, and what the
        budget still allows it.

        Raises:
            LedgerMismatch: a run that protects another unit has used the same records.
        """
        for name, ledger in ledgers.items():
            if self._looked_at.get(name) == self._age:
                continue
            self._looked_at[name] = self._age
            ledger.others = self._spent_by_others(name)
            ledger.allowance = None
            if self.budget is not None:
                ledger.allowance = ledger.affordable(*self.budget, (*ledger.prior, *ledger.others))

    def charge(self, ledgers: Mapping[str, PrivacyLedger]) -> None:
        """Charges what each ledger counts beyond its entry, durably, in one record. Only while :meth:`opened`."""
        fresh = {
            self._own[name]: ledger.steps(ledger.steps_taken).steps - self.steps_of(name)
            for name, ledger in ledgers.items()
        }
        fresh = {number: steps for number, steps in fresh.items() if steps > 0}
        if fresh:
            self._add({"charge": {str(number): steps for number, steps in fresh.items()}})

    def total(self, ledger: PrivacyLedger, steps: int) -> float:
        """ε of other runs and of ``steps`` of this ledger's, at the budget's δ, or the ledger's where there is none."""
        delta = self.budget[1] if self.budget else ledger.delta
        return epsilon_of((*ledger.prior, *ledger.others, ledger.steps(steps)), delta, ledger.accountant)

    def spent(self) -> list[tuple[Spent, ...]]:
        """What single records have seen over all runs, each combination once; where there are more than
        ``MOST_HISTORIES``, a bound on them all.
        """
        charged = self._charged()
        if not charged:
            return []
        listed = {e.records: self._records(e.records) for e in charged}
        everybody = np.unique(np.concatenate(list(listed.values())))
        held = [(e, np.isin(everybody, listed[e.records])) for e in charged]
        kinds, steps = self._seen(everybody, held)
        different = np.unique(steps, axis=0)
        if len(different) > MOST_HISTORIES:
            return [self._most(everybody, held)]
        return [_history(kinds, row) for row in different]

    # ---- what is in the log

    def _add(self, record: dict[str, Any]) -> None:
        self._log.append(record)
        self._take(record)

    def _take(self, record: dict[str, Any]) -> None:
        try:
            quiet = {str(number) for name, number in self._own.items() if name not in self._meeting}
            if set(record.get("charge", ())) - quiet or "charge" not in record:
                self._age += 1
            if "budget" in record:
                epsilon, delta = record["budget"]
                self.budget = (float(epsilon), float(delta))
            elif "entry" in record:
                values = record["entry"]
                self.entries.append(Entry(**values | {"steps": spent_from(values["steps"])}))
            else:
                for number, steps in record["charge"].items():
                    entry = self.entries[int(number)]
                    entry.steps = entry.steps._replace(steps=entry.steps.steps + int(steps))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise LedgerMismatch(f"{self.folder}: a record of another version: {error}; update ffalora") from None

    # ---- who holds which records

    def _list_records(self, digests: Sequence[bytes]) -> str:
        """Writes the salted hashes of records, sorted, and answers with the name of the list."""
        salted = sorted({int.from_bytes(self._log.salted(digest)[:8], "little") for digest in digests})
        values = np.array(salted, dtype=np.uint64)
        name = self._log.salted(b"list " + values.tobytes()).hex()[:32]
        path = self.folder / "records" / f"{name}.npy"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            buffer = io.BytesIO()
            np.save(buffer, values)
            write_atomically(path, buffer.getvalue())
        return name

    def _records(self, name: str) -> np.ndarray:
        try:
            return np.load(self.folder / "records" / f"{name}.npy", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise LedgerMismatch(
                f"{self.folder}: the list of records {name} cannot be read ({error}); restore it: without it nobody "
                "can tell whose privacy was spent"
            ) from None

    def _sharing(self, names: list[str]) -> list[str]:
        """Those of this run's names that hold a record which another of them holds, too."""
        lists = [self._records(self.entries[self._own[name]].records) for name in names]
        values, counts = np.unique(np.concatenate(lists), return_counts=True)
        return [name for name, held in zip(names, lists, strict=True) if np.isin(held, values[counts > 1]).any()]

    def _charged(self) -> list[Entry]:
        return [e for e in self.entries if e.noise == "secure" and e.steps.steps]

    def _spent_by_others(self, name: str) -> tuple[Spent, ...]:
        mine = self.entries[self._own[name]].records
        left_out = self.own_entries - {self._own[other] for other in self._meeting if other != name}
        held = []
        for number, entry in enumerate(self.entries):
            if number in left_out or entry.noise != "secure":
                continue
            if entry.steps.steps and "user" in (entry.steps.unit, self.entries[self._own[name]].steps.unit):
                self._check_unit(entry, name)  # users and records have digests of their own, which never meet
            if (mine, entry.records) not in self._shared:
                records = self._records(mine)
                self._shared[mine, entry.records] = np.isin(records, self._records(entry.records))
            shared = self._shared[mine, entry.records]
            if shared.any():
                self._check_unit(entry, name)
                held.append((entry, shared))
        return self._most(self._records(mine), held) if held else ()

    def _check_unit(self, entry: Entry, name: str) -> None:
        own = self.entries[self._own[name]]
        try:
            check_one_unit([own.steps._replace(steps=1), entry.steps._replace(steps=1)])
        except ValueError as error:
            raise LedgerMismatch(
                f"ledger {self.name}: {own.who} may share records with {entry.who} of {entry.run}, but their {error}"
            ) from None

    @staticmethod
    def _most(records: np.ndarray, held: list[tuple[Entry, np.ndarray]]) -> tuple[Spent, ...]:
        """Of each kind of step, the most that one of the records saw."""
        kinds, steps = DataLedger._seen(records, held)
        return _history(kinds, steps.max(axis=0, initial=0))

    @staticmethod
    def _seen(records: np.ndarray, held: list[tuple[Entry, np.ndarray]]) -> tuple[list[Spent], np.ndarray]:
        """Kinds of steps, and how many of each ``[records, kinds]`` every record saw."""
        kinds = sorted({entry.steps._replace(steps=0) for entry, _ in held})
        steps = np.zeros((len(records), len(kinds)), dtype=np.int64)
        for entry, shared in held:
            steps[:, kinds.index(entry.steps._replace(steps=0))] += entry.steps.steps * shared
        return kinds, steps


def _history(kinds: list[Spent], steps: np.ndarray) -> tuple[Spent, ...]:
    return tuple(kind._replace(steps=int(count)) for kind, count in zip(kinds, steps, strict=True) if count)


def find_data_ledger(named: str | None, data: str) -> DataLedger:
    """The ledger of a data set, made if it is missing; arguments as of ``ledger_folder``."""
    return DataLedger(ledger_folder(named, data))


def _identity(entry: Entry) -> tuple[str, str, Spent, str, str]:
    return entry.account, entry.who, entry.steps._replace(steps=0), entry.records, entry.noise


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
