"""The ledger of one client's data: what it may spend, what it has spent, across rounds, participation and resume.

A ledger belongs to the data, not to a round or a run. The steps it allows are those of all rounds together; a step is
charged when it is taken, also when the client then drops out, and also when its draw was empty. Client-level privacy
has one ledger for the whole population (``unit='client'``), charged every round. What other runs spend on the same
records is looked up in the data set's ledger (:mod:`ffalora.privacy.data_ledger`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..config.names import PRIVACY_NAMES, takes_names
from .accountants import epsilon_of
from .correlation import Correlation
from .ledger_terms import LedgerMismatch, LedgerTerms
from .sealed import write_sealed
from .spent import Spent, fits, joint_adjacency, spent_from

_FORMAT = 2
#: What files of earlier versions do not say.
_UNSAID: dict[str, Any] = {"group": 1, "trials": 1.0, "noise": None}


class PrivacyBudgetSpent(RuntimeError):
    """A step was asked for that the ledger does not allow."""


@takes_names(PRIVACY_NAMES)
@dataclass
class PrivacyLedger(LedgerTerms):
    """Steps allowed and steps taken on one client's data, beside the terms that each of them is counted under.

    Attributes:
        client_id: persistent id of the client; any one number for the population's ledger of ``unit='client'``.
        dataset_size: of what is drawn, samples, users or clients; a public bound on it where the number is secret.
        sample_rate: q, probability of drawing each unit in a step.
        noise_multiplier: σ, standard deviation of the noise on the sum over its sensitivity bound C(1+η).
        delta: δ, at most one over ``dataset_size``; ``target_delta`` is another name of it.
        max_steps: the most steps that may be taken in all rounds together.
        target_epsilon: if given, steps that would spend more are refused even below ``max_steps``.
        accountant: 'pld', 'prv' or 'rdp': decides what the target allows and what :meth:`epsilon` answers.
        sampling: 'poisson', or one of the kinds that get no amplification (see ``accountants``).
        unit: 'sample', 'user' or 'client'.
        group: of ``unit='user'``, where samples are drawn and not users: the most samples of one user.
        fingerprint: identifies the data beyond its size (may be empty); must agree on resume.
        prior: what earlier runs have spent on the same data; part of every ε and of what the target allows.
        size_is_public: whether the number of units is; decides between zero-out and add/remove adjacency.
        label: what people call the client; may be empty.
        correlation: of the noise of different steps; None where they are independent. Steps then count by whole
            releases (:meth:`steps`), and σ is relative to what one record can change in a release.
        trials: above 1, this is one of so many trials, on average, of which only the best is shown; the first step
            spends the whole choice.
        steps_taken: charged so far.
        noise: that hid their results, 'secure' or 'seeded' (a simulation, which protects nothing); None where nobody
            has said so, as in files of earlier versions.
        others: what other runs, and other clients of this one, have spent on the same records, by the data set's
            ledger, which keeps this up to date; part of every ε, not of what the target allows.
        allowance: the most steps that the data set's budget leaves to this run; None without one.
        steps_written: how many of the steps taken are in the ledger's file (:mod:`ffalora.privacy.ledger_files`).
    """

    steps_taken: int = 0
    noise: str | None = None
    others: tuple[Spent, ...] = field(default=(), init=False, repr=False, compare=False)
    allowance: int | None = field(default=None, init=False, repr=False, compare=False)
    steps_written: int = field(default=0, init=False, repr=False, compare=False)
    _allowed: int | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._make_whole("steps_taken")
        if self.steps_taken > self.max_steps:
            raise ValueError(f"{self.name}: steps_taken={self.steps_taken} must not exceed max_steps={self.max_steps}")
        if self.noise not in (None, "secure", "seeded"):
            raise ValueError(f"{self.name}: noise must be 'secure', 'seeded' or None, got {self.noise!r}")

    @property
    def adjacency(self) -> str:
        """Which data sets are neighbours, for all that the ε is about: this ledger's steps and those of earlier and
        other runs (see ``accountants``).
        """
        return f"{joint_adjacency((*self.prior, *self.others, self.steps(1)))} one {self.unit}"

    @property
    def steps_allowed(self) -> int:
        """Steps in all: ``max_steps``, or as many of them as the target affords."""
        if self.target_epsilon is None:
            return self.max_steps
        if self._allowed is None:
            self._allowed = self.affordable(self.target_epsilon, self.delta, self.prior)
        return self._allowed

    @property
    def steps_left(self) -> int:
        """Steps that may still be charged."""
        allowed = self.steps_allowed if self.allowance is None else min(self.steps_allowed, self.allowance)
        return max(0, allowed - self.steps_taken)

    @property
    def history(self) -> tuple[Spent, ...]:
        """Everything spent on this data: earlier runs, other runs, and this run's steps."""
        return (*self.prior, *self.others, self.steps(self.steps_taken))

    def charge(self, steps: int = 1, noise: str | None = None) -> None:
        """Counts ``steps`` steps, before their noisy result is used.

        Args:
            noise: that hides their results ('secure' or 'seeded'), where the caller knows.

        Raises:
            PrivacyBudgetSpent: they exceed ``max_steps`` or the target; nothing is charged then.
            LedgerMismatch: earlier steps had other noise, likewise.
        """
        if None not in (noise, self.noise) and noise != self.noise:
            raise LedgerMismatch(
                f"{self.name} has taken steps with noise={self.noise!r} and asks for one with {noise!r}; count them in "
                "a new ledger (and, if what was seeded was released, do not: nothing bounds what it showed)"
            )
        if steps < 1:
            raise ValueError(f"{self.name}: steps to charge must be at least 1, got {steps}")
        if steps > self.steps_left:
            spent = f"{self.name} has taken {self.steps_taken} steps and asks for {steps} more, but "
            if self.steps_taken + steps > self.max_steps:
                raise PrivacyBudgetSpent(
                    spent + f"max_steps={self.max_steps} were calibrated for; a longer run needs more from the start"
                )
            if self.steps_taken + steps <= self.steps_allowed:
                raise PrivacyBudgetSpent(
                    spent + f"the budget of its data set allows {self.allowance} after what other runs spent on the "
                    "same records; see ffalora epsilon --ledger"
                )
            raise PrivacyBudgetSpent(
                spent + f"target_epsilon={self.target_epsilon} allows {self.steps_allowed} at noise_multiplier="
                f"{self.noise_multiplier:.4g}; raise the noise or the target for a new run"
            )
        self.steps_taken += steps
        self.noise = noise or self.noise

    def begin_anew(self) -> None:
        """Charges the rest of a release whose noise nobody remembers, so that the next step begins another."""
        self.steps_taken += min(-self.steps_taken % self.period, self.max_steps - self.steps_taken)

    def epsilon(self) -> float:
        """ε spent so far, earlier and other runs included, at this ledger's δ."""
        return epsilon_of(self.history, self.delta, self.accountant)

    def final_epsilon(self) -> float:
        """ε once every allowed step is taken."""
        history = (*self.prior, *self.others, self.steps(self.steps_allowed))
        return epsilon_of(history, self.delta, self.accountant)

    def state_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values; ``correlation`` and ``others`` where there are any. What others spent is for
        whoever begins with this file as its ``prior``: the ledger itself asks the data set's again.
        """
        state = {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name != "correlation"}
        if self.correlation is not None:
            state["correlation"] = self.correlation.as_dict()
        if self.others:
            state["others"] = [list(part) for part in self.others]
        return {"format": _FORMAT, **state, "prior": [list(p) for p in self.prior]}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> PrivacyLedger:
        """The ledger that :meth:`state_dict` described.

        Raises:
            LedgerMismatch: missing or unknown entries, wrong types, or values out of range.
        """
        given: dict[str, Any] = {**_UNSAID, **state} if isinstance(state, dict) else {}
        if given.pop("format", None) != _FORMAT:
            raise LedgerMismatch(f"not a privacy ledger of format {_FORMAT}: {str(state)[:80]}")
        correlation, others = given.pop("correlation", None), given.pop("others", [])
        known = {f.name: str(f.type) for f in fields(cls) if f.init and f.name != "correlation"}
        if set(given) != set(known):
            raise LedgerMismatch(
                f"privacy ledger has wrong entries: {sorted(set(given) ^ set(known))} are missing or unknown"
            )
        for name, kind in known.items():
            if not fits(given[name], kind):
                raise LedgerMismatch(f"privacy ledger: {name} must be {kind}, got {given[name]!r}")
        try:
            factor = None if correlation is None else Correlation.from_dict(correlation)
            ledger = cls(**given | {"prior": tuple(map(spent_from, given["prior"])), "correlation": factor})
            ledger.others = tuple(map(spent_from, others))
            return ledger
        except (ValueError, TypeError) as error:
            raise LedgerMismatch(f"privacy ledger cannot be used: {error}") from error

    def resume(self, state: dict[str, Any]) -> None:
        """Takes over the steps of a stored ledger; LedgerMismatch as by :meth:`check_terms`."""
        stored = PrivacyLedger.from_state_dict(state)
        self.check_terms(stored)
        self.steps_taken, self.noise = max(self.steps_taken, stored.steps_taken), stored.noise or self.noise

    def check_terms(self, stored: PrivacyLedger) -> None:
        """LedgerMismatch where steps of a stored ledger cannot be added: the size of the data, q, σ, δ or another term
        differs (each is named with both values), or it took more than this configuration allows.
        """
        terms = [f.name for f in fields(LedgerTerms) if f.name != "max_steps"]
        if None not in (self.noise, stored.noise):
            terms.append("noise")
        changed = [
            f"{name} was {getattr(stored, name)!r} and is {getattr(self, name)!r}"
            for name in terms
            if getattr(stored, name) != getattr(self, name)
        ]
        if stored.max_steps > self.max_steps and stored.steps_taken > self.max_steps:
            changed.append(
                f"max_steps was {stored.max_steps} and is {self.max_steps}, below {stored.steps_taken} steps taken"
            )
        elif self.max_steps > stored.max_steps or (self.trials > 1 and self.max_steps < stored.max_steps):
            changed.append(
                f"max_steps was {stored.max_steps} and is {self.max_steps}: the noise was calibrated for what it was"
            )
        if changed:
            raise LedgerMismatch(
                f"{self.name} cannot resume: {'; '.join(changed)}. "
                "Restore the old configuration, or start a new run whose prior holds what was spent"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the ledger as JSON, whole or not at all, and durably: on return it survives a power cut."""
        write_sealed(Path(path), self.state_dict())
