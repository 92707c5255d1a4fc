"""The ledger of one client's data: what it may spend, what it has spent, across rounds, participation and resume.

A ledger belongs to the data, not to a round or a run. The steps it allows are those of all rounds together; a step is
charged when it is taken, also when the client then drops out, and also when its draw was empty. Client-level privacy
has one ledger for the whole population (``unit='client'``), charged every round.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field, fields
from operator import index
from pathlib import Path
from typing import Any

from ..config.names import PRIVACY_NAMES, takes_names
from ..files.atomic import write_atomically
from .accountants import ACCOUNTANTS, SAMPLINGS, Spent, affordable_steps, epsilon_of

UNITS = ("sample", "client")
_FORMAT = 1
_WHOLE_LIMIT = 2**32


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
        dataset_size: number of privacy units (samples, or clients of the population).
        sample_rate: q, probability of drawing each unit in a step.
        noise_multiplier: σ, standard deviation of the noise on the sum over its sensitivity bound C(1+η).
        delta: δ; ``target_delta`` is another name of it.
        max_steps: the most steps that may be taken in all rounds together.
        target_epsilon: if given, steps that would spend more are refused even below ``max_steps``.
        accountant: 'rdp', 'prv' or 'pld': decides what the target allows and what :meth:`epsilon` answers by default.
        sampling: 'poisson', or one of the kinds that get no amplification (see ``accountants``).
        unit: 'sample' or 'client'.
        fingerprint: identifies the data beyond its size (a digest, a path's name; may be empty); must agree on resume.
        prior: what earlier runs have spent on the same data; part of every ε.
        steps_taken: charged so far.
    """

    client_id: int
    dataset_size: int
    sample_rate: float
    noise_multiplier: float
    delta: float
    max_steps: int
    target_epsilon: float | None = None
    accountant: str = "prv"
    sampling: str = "poisson"
    unit: str = "sample"
    fingerprint: str = ""
    prior: tuple[Spent, ...] = ()
    steps_taken: int = 0
    _allowed: int | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.prior = tuple(Spent(float(s), float(q), index(n)) for s, q, n in self.prior)
        for whole in ("client_id", "dataset_size", "max_steps", "steps_taken"):
            setattr(self, whole, index(getattr(self, whole)))
            if not 0 <= getattr(self, whole) < _WHOLE_LIMIT:
                raise ValueError(f"{whole} must lie in 0 … 2**32 - 1, got {getattr(self, whole)}")
        for name, allowed in (("accountant", ACCOUNTANTS), ("sampling", SAMPLINGS), ("unit", UNITS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{self.name}: {name} must be one of {allowed}, got {getattr(self, name)!r}")
        if self.dataset_size < 1:
            raise ValueError(
                f"{self.name} has dataset_size={self.dataset_size}: nothing to protect; leave it out of the run"
            )
        if not 0 < self.sample_rate <= 1:
            raise ValueError(
                f"{self.name}: sample_rate must lie in (0, 1], got {self.sample_rate}; lower the batch size"
            )
        if not (self.noise_multiplier >= 0 and math.isfinite(self.noise_multiplier)):
            raise ValueError(
                f"{self.name}: noise_multiplier must be finite and not negative, got {self.noise_multiplier}"
            )
        if not 0 < self.delta < 1:
            raise ValueError(f"{self.name}: delta must lie between 0 and 1, got {self.delta}")
        if self.target_epsilon is not None:
            if not self.target_epsilon > 0:
                raise ValueError(f"{self.name}: target_epsilon must be positive, got {self.target_epsilon}")
            if self.noise_multiplier == 0:
                raise ValueError(
                    f"{self.name}: noise_multiplier=0 spends infinite ε and cannot meet "
                    f"target_epsilon={self.target_epsilon}; calibrate the noise, or drop the target"
                )
        if self.steps_taken > self.max_steps:
            raise ValueError(f"{self.name}: steps_taken={self.steps_taken} must not exceed max_steps={self.max_steps}")

    @property
    def name(self) -> str:
        """Who is named in errors."""
        return f"client {self.client_id}" if self.unit == "sample" else "the population of clients"

    @property
    def adjacency(self) -> str:
        """Which data sets are neighbours: 'add/remove one UNIT' under Poisson sampling, else 'replace one UNIT'."""
        return f"{'add/remove' if self.sampling == 'poisson' else 'replace'} one {self.unit}"

    @property
    def steps_allowed(self) -> int:
        """Steps in all: ``max_steps``, or as many of them as the target affords."""
        if self.target_epsilon is None:
            return self.max_steps
        if self._allowed is None:
            self._allowed = affordable_steps(
                self.target_epsilon, self.delta, self.noise_multiplier, self.sample_rate, self.max_steps,
                self.accountant, self.sampling, self.prior,
            )  # fmt: skip
        return self._allowed

    @property
    def steps_left(self) -> int:
        """Steps that may still be charged."""
        return max(0, self.steps_allowed - self.steps_taken)

    @property
    def history(self) -> tuple[Spent, ...]:
        """Everything spent on this data: ``prior`` and this run's steps."""
        return (*self.prior, Spent(self.noise_multiplier, self.sample_rate, self.steps_taken))

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
            raise PrivacyBudgetSpent(
                spent + f"target_epsilon={self.target_epsilon} allows {self.steps_allowed} at noise_multiplier="
                f"{self.noise_multiplier:.4g}; raise the noise or the target for a new run"
            )
        self.steps_taken += steps

    def epsilon(self, accountant: str | None = None) -> float:
        """ε spent so far, prior runs included, at this ledger's δ."""
        return epsilon_of(self.history, self.delta, accountant or self.accountant, self.sampling)

    def final_epsilon(self, accountant: str | None = None) -> float:
        """ε once every allowed step is taken."""
        history = (*self.prior, Spent(self.noise_multiplier, self.sample_rate, self.steps_allowed))
        return epsilon_of(history, self.delta, accountant or self.accountant, self.sampling)

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        state = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return {"format": _FORMAT, **state, "prior": [list(p) for p in self.prior]}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> PrivacyLedger:
        """The ledger that :meth:`state_dict` described.

        Raises:
            LedgerMismatch: missing or unknown entries, wrong types, or values out of range.
        """
        given = dict(state) if isinstance(state, dict) else {}
        if given.pop("format", None) != _FORMAT:
            raise LedgerMismatch(f"not a privacy ledger of format {_FORMAT}: {str(state)[:80]}")
        known = {f.name: str(f.type) for f in fields(cls) if f.init}
        if set(given) != set(known):
            raise LedgerMismatch(
                f"privacy ledger has wrong entries: {sorted(set(given) ^ set(known))} are missing or unknown"
            )
        for name, kind in known.items():
            if not _fits(given[name], kind):
                raise LedgerMismatch(f"privacy ledger: {name} must be {kind}, got {given[name]!r}")
        try:
            return cls(**given)
        except (ValueError, TypeError) as error:
            raise LedgerMismatch(f"privacy ledger cannot be used: {error}") from error

    def resume(self, state: dict[str, Any]) -> None:
        """Takes over the steps of a stored ledger of the same data under the same terms.

        Raises:
            LedgerMismatch: dataset size, sample rate, σ, δ or any other term differs (each is named with both values),
                or more steps were taken than this configuration allows.
        """
        stored = PrivacyLedger.from_state_dict(state)
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
        elif self.max_steps > stored.max_steps:
            changed.append(
                f"max_steps was {stored.max_steps} and is {self.max_steps}: the noise was calibrated for fewer steps"
            )
        if changed:
            raise LedgerMismatch(
                f"{self.name} cannot resume: {'; '.join(changed)}. "
                "Restore the old configuration, or start a new run whose prior holds what was spent"
            )
        self.steps_taken = max(self.steps_taken, stored.steps_taken)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the ledger as JSON, whole or not at all, and durably: on return it survives a power cut."""
        write_atomically(Path(path), json.dumps(self.state_dict(), indent=1).encode())


def _fits(value: Any, kind: str) -> bool:
    if value is None:
        return "None" in kind
    if kind.startswith("tuple"):
        return isinstance(value, list | tuple) and all(
            isinstance(p, list | tuple) and len(p) == 3 and all(_fits(v, "float") for v in p) and _fits(p[2], "int")
            for p in value
        )
    if kind.startswith("str"):
        return isinstance(value, str)
    if kind.startswith("int"):
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < _WHOLE_LIMIT**4  # no NaN, no Inf, nothing that a float cannot hold
