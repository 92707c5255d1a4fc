"""The terms of a ledger: of whose data it is, how each step is drawn and noised, and what all of them may spend."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import index

from .accountants import ACCOUNTANTS, affordable_steps
from .correlation import Correlation
from .spent import SAMPLINGS, UNITS, WHOLE_LIMIT, Spent, check_one_unit


class LedgerMismatch(ValueError):
    """A stored ledger does not fit the data or the configuration that it is resumed with."""


@dataclass
class LedgerTerms:
    """What every step of one client's data is counted under; it stays the same from the first step to the last.

    Its fields are described where people meet them, in :class:`~ffalora.privacy.accounting.PrivacyLedger`.
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
    size_is_public: bool = True
    label: str = ""
    group: int = 1
    correlation: Correlation | None = None
    trials: float = 1.0

    def __post_init__(self) -> None:
        self.prior = tuple(Spent(*part) for part in self.prior)
        for whole in ("client_id", "dataset_size", "max_steps", "group"):
            self._make_whole(whole)
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

    def _make_whole(self, name: str) -> None:
        """Makes a value an int that can be written down."""
        setattr(self, name, index(getattr(self, name)))
        if not 0 <= getattr(self, name) < WHOLE_LIMIT:
            raise ValueError(f"{name} must lie in 0 … 2**32 - 1, got {getattr(self, name)}")

    def _check_values(self) -> None:
        """Each value must lie in its range; δ, the target and the sampling must make sense together."""
        n, rate, sigma, delta, target = (
            self.dataset_size, self.sample_rate, self.noise_multiplier, self.delta, self.target_epsilon
        )  # fmt: skip
        most_trials = math.inf if self.correlation is None else 1 + 1e-12
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

    def affordable(self, target_epsilon: float, delta: float, before: tuple[Spent, ...]) -> int:
        """The most of this ledger's steps that, after what was spent ``before``, keep ε within the target."""
        wanted = self.steps(self.max_steps)
        return min(
            self.max_steps, self.period * affordable_steps(target_epsilon, delta, wanted, self.accountant, before)
        )
