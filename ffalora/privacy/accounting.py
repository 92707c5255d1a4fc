"""The ledger of one client's data: what it may spend, what it has spent, across rounds, participation and resume.

A ledger belongs to the data, not to a round or a run. The steps it allows are those of all rounds together; a step is
charged when it is taken, also when the client then drops out, and also when its draw was empty. Client-level privacy
has one ledger for the whole population (``unit='client'``), charged every round. What other runs spend on the same
records is looked up in the data set's ledger (:mod:`ffalora.privacy.data_ledger`).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields
from operator import index
from pathlib import Path
from typing import Any

from ..config.names import PRIVACY_NAMES, takes_names
from .accountants import ACCOUNTANTS, affordable_steps, epsilon_of
from .correlation import Correlation
from .sealed import write_sealed
from .spent import SAMPLINGS, UNITS, WHOLE_LIMIT, Spent, check_one_unit, fits, joint_adjacency, spent_from

_FORMAT = 2


class PrivacyBudgetSpent(RuntimeError):
    """A step was asked for that the ledger does not allow."""


class LedgerMismatch(ValueError):
    """A stored ledger does not fit the data or the configuration that it is resumed with."""


@takes_names(PRIVACY_NAMES)
@dataclass
class PrivacyLedger:
    """Steps allowed and steps taken on one client's data.

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
        steps_taken: charged so far.
        size_is_public: whether the number of units is; decides between zero-out and add/remove adjacency.
        label: what people call the client; may be empty.
        correlation: of the noise of different steps; None where they are independent. Steps then count by whole
            releases (:meth:`steps`), and σ is relative to what one record can change in a release.
        trials: above 1, this is one of so many trials, on average, of which only the best is shown; the first step
            spends the whole choice.
        others: what other runs, and other clients of this one, have spent on the same records, by the data set's
            ledger, which keeps this up to date; part of every ε, not of what the target allows.
        allowance: the most steps that the data set's budget leaves to this run; None without one.
        steps_written: how many of the steps taken are in the ledger's file (:mod:`ffalora.privacy.ledger_files`).
    """

    client_id: int
    dataset_size: int
    sample_rate: float
    noise_multiplier: float
    delta: float
    max_steps: int
    target_epsilon: float | None = None
    accountant: str = "pld"
    sampling: str = "poisson"
    unit: str = "sample"
    fingerprint: str = ""
    prior: tuple[Spent, ...] = ()
    steps_taken: int = 0
    size_is_public: bool = True
    label: str = ""
    group: int = 1
    correlation: Correlation | None = None
    trials: float = 1.0
    others: tuple[Spent, ...] = field(default=(), init=False, repr=False, compare=False)
    allowance: int | None = field(default=None, init=False, repr=False, compare=False)
    steps_written: int = field(default=0, init=False, repr=False, compare=False)
    _allowed: int | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.prior = tuple(Spent(*part) for part in self.prior)
        for whole in ("client_id", "dataset_size", "max_steps", "steps_taken", "group"):
            setattr(self, whole, index(getattr(self, whole)))
            if not 0 <= getattr(self, whole) < WHOLE_LIMIT:
                raise ValueError(f"{whole} must lie in 0 … 2**32 - 1, got {getattr(self, whole)}")
        for name, allowed in (("accountant", ACCOUNTANTS), ("sampling", SAMPLINGS), ("unit", UNITS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{self.name}: {name} must be one of {allowed}, got {getattr(self, name)!r}")
        self._check_values()
        try:
            check_one_unit((*self.prior, self.steps(1)))
        except ValueError as error:
            raise LedgerMismatch(f"{self.name}: prior: {error}") from None
        if self.correlation is not None:
            self.correlation.check(self.unit, self.sampling, self.size_is_public, self.max_steps, self.sample_rate)

    def _check_values(self) -> None:
        """Each value must lie in its range; δ, the target and the sampling must make sense together."""
        n, rate, sigma, delta, target = (
            self.dataset_size, self.sample_rate, self.noise_multiplier, self.delta, self.target_epsilon
        )  # fmt: skip
        most, most_trials = self.max_steps, math.inf if self.correlation is None else 1 + 1e-12
        for holds, what in (
            (n >= 1, f"dataset_size={n}: nothing to protect; leave it out of the run"),
            (
                self.group == 1 or (self.group > 1 and self.unit == "user"),
                f"group={self.group} is of unit='user' alone, and at least 1; unit is {self.unit!r}",
            ),
            (0 < rate <= 1, f"sample_rate must lie in (0, 1], got {rate}; lower the batch size"),
            (0 <= sigma < math.inf, f"noise_multiplier must be finite and not negative, got {sigma}"),
            (
                1 <= self.trials < most_trials,
                f"trials must be finite, at least 1, and 1 where noise is correlated, got {self.trials}",
            ),
            (self.steps_taken <= most, f"steps_taken={self.steps_taken} must not exceed max_steps={most}"),
            (0 < delta < 1, f"delta must lie between 0 and 1, got {delta}"),
            (
                delta * n <= 1,
                f"delta={delta:g} is above one over its {n} {self.drawn}s, so a mechanism that publishes one of them "
                f"outright would meet it; take delta={0.1 / max(n, 1):.2g} or less",
            ),
            (
                self.size_is_public or self.sampling == "poisson",
                f"sampling={self.sampling!r} draws batches whose sizes show how many {self.drawn}s there are; a size "
                "that is secret needs sampling='poisson'",
            ),
            (target is None or target > 0, f"target_epsilon must be positive, got {target}"),
            (
                target is None or sigma > 0,
                f"noise_multiplier=0 cannot meet target_epsilon={target}; calibrate the noise, or drop the target",
            ),
        ):
            if not holds:
                raise ValueError(f"{self.name}: {what}")

    @property
    def name(self) -> str:
        """Who is named in errors."""
        return "the population of clients" if self.unit == "client" else self.label or f"client {self.client_id}"

    @property
    def drawn(self) -> str:
        """What a step draws: the unit, or samples in groups."""
        return self.unit if self.group == 1 else "sample"

    @property
    def adjacency(self) -> str:
        """Which data sets are neighbours, for all that the ε is about: this ledger's steps and those of earlier and
        other runs (see ``accountants``).
        """
        return f"{joint_adjacency((*self.prior, *self.others, self.steps(1)))} one {self.unit}"

    @property
    def expected_batch(self) -> float:
        """The divisor of noisy sums: a constant of the ledger, never the size of what was drawn."""
        return self.sample_rate * self.dataset_size

    def covers(self, size: int) -> bool:
        """Whether the ledger is for ``size`` of what is drawn: for that many, or for a bound on them."""
        return size == self.dataset_size if self.size_is_public else size <= self.dataset_size

    @property
    def period(self) -> int:
        """How many steps are one release, or one choice: 1 where the noise of different steps is independent."""
        if self.trials > 1:
            return max(1, self.max_steps)
        return 1 if self.correlation is None else self.correlation.period

    def steps(self, count: int) -> Spent:
        """What ``count`` of this ledger's steps spend, as others write it down: the releases that they begin."""
        zeroes = self.sampling in ("poisson", "by-server")
        kind = "replace" if not zeroes else "zero-out" if self.size_is_public else "add/remove"
        releases, rate = -(-count // self.period), self.sample_rate
        if self.correlation is not None:
            rate = self.correlation.release_rate(rate)
        one = Spent(self.noise_multiplier, rate, self.period, self.sampling, self.unit, kind, self.group)
        return one.chosen(self.trials)._replace(steps=releases)

    @property
    def steps_allowed(self) -> int:
        """Steps in all: ``max_steps``, or as many of them as the target affords."""
        if self.target_epsilon is None:
            return self.max_steps
        if self._allowed is None:
            self._allowed = self.affordable(self.target_epsilon, self.delta, self.prior)
        return self._allowed

    def affordable(self, target_epsilon: float, delta: float, before: tuple[Spent, ...]) -> int:
        """The most of this ledger's steps that, after what was spent ``before``, keep ε within the target."""
        wanted = self.steps(self.max_steps)
        return min(
            self.max_steps, self.period * affordable_steps(target_epsilon, delta, wanted, self.accountant, before)
        )

    @property
    def steps_left(self) -> int:
        """Steps that may still be charged."""
        allowed = self.steps_allowed if self.allowance is None else min(self.steps_allowed, self.allowance)
        return max(0, allowed - self.steps_taken)

    @property
    def history(self) -> tuple[Spent, ...]:
        """Everything spent on this data: earlier runs, other runs, and this run's steps."""
        return (*self.prior, *self.others, self.steps(self.steps_taken))

    def charge(self, steps: int = 1) -> None:
        """Counts ``steps`` steps, before their noisy result is used.

        Raises:
            PrivacyBudgetSpent: they exceed ``max_steps`` or the target; nothing is charged then.
        """
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
        """Everything but ``others``, as plain JSON values; ``correlation`` where there is one."""
        state = {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name != "correlation"}
        if self.correlation is not None:
            state["correlation"] = self.correlation.as_dict()
        return {"format": _FORMAT, **state, "prior": [list(p) for p in self.prior]}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> PrivacyLedger:
        """The ledger that :meth:`state_dict` described.

        Raises:
            LedgerMismatch: missing or unknown entries, wrong types, or values out of range.
        """
        given: dict[str, Any] = {"group": 1, "trials": 1.0, **state} if isinstance(state, dict) else {}
        if given.pop("format", None) != _FORMAT:
            raise LedgerMismatch(f"not a privacy ledger of format {_FORMAT}: {str(state)[:80]}")
        correlation = given.pop("correlation", None)
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
            return cls(**given | {"prior": tuple(map(spent_from, given["prior"])), "correlation": factor})
        except (ValueError, TypeError) as error:
            raise LedgerMismatch(f"privacy ledger cannot be used: {error}") from error

    def resume(self, state: dict[str, Any]) -> None:
        """Takes over the steps of a stored ledger; LedgerMismatch as by :meth:`check_terms`."""
        stored = PrivacyLedger.from_state_dict(state)
        self.check_terms(stored)
        self.steps_taken = max(self.steps_taken, stored.steps_taken)

    def check_terms(self, stored: PrivacyLedger) -> None:
        """LedgerMismatch where steps of a stored ledger cannot be added: the size of the data, q, σ, δ or another term
        differs (each is named with both values), or it took more than this configuration allows.
        """
        terms = [f.name for f in fields(self) if f.init and f.name not in ("steps_taken", "max_steps")]
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
