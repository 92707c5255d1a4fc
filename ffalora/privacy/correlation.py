"""Noise that is correlated over steps so that much of it cancels in what training adds up: the factor, and its price.

A run adds up its noisy sums, so what reaches the model after t steps is the noise of all of them together. Let z be
independent normals and C a lower triangular Toeplitz matrix of coefficients ``c_0 = 1, c_1, …``. Noise ``C⁻¹z`` on the
clipped sums x is ``C⁻¹(Cx + z)``: what is known of ``Cx + z``, a Gaussian release whose sensitivity is that of ``Cx``.
Its prefix sums have the coefficients of ``1/(c(x)(1-x))``, which may be much smaller than those of ``1/(1-x)``.

* ``banded-mf``: ``c_j = 0`` from the band b on (Choquette-Choo, Ganesh, McKenna, McMahan, Rush, Thakurta, Xu,
  "(Amplified) Banded Matrix Factorization", NeurIPS 2023). Records are in b groups that take turns, and each step
  draws from one of them: the columns of C in which a record takes part do not overlap, and sampling amplifies.
* ``blt``: ``c_j = Σ_i w_i λ_i^(j-1)``, a buffered linear Toeplitz matrix (Dvijotham, McMahan, Pillutla, Steinke,
  Thakurta, FOCS 2024; McMahan, Xu, Zhang, arXiv:2408.08868). A few buffers serve any number of steps; nothing is
  amplified.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .sampling import Indices, shuffled_batches

MECHANISMS = ("independent", "banded-mf", "blt")


@dataclass(frozen=True)
class Correlation:
    """A factor C, and how often a record takes part in the run that it is for.

    Attributes:
        mechanism: 'banded-mf' or 'blt'.
        steps: T, of the whole run.
        separation: steps from one in which a record may take part to the next: how many groups of records take turns.
        weights: banded-mf: ``c_1 … c_(b-1)``; blt: ``w_i``.
        decays: blt: ``λ_i``; empty for banded-mf.

    Raises:
        ValueError: a band longer than the run or than the separation, or numbers that are no factor.
    """

    mechanism: str
    steps: int
    separation: int
    weights: tuple[float, ...]
    decays: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.mechanism not in MECHANISMS[1:]:
            raise ValueError(f"mechanism must be one of {MECHANISMS[1:]}, got {self.mechanism!r}")
        for name in ("steps", "separation"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name in ("weights", "decays"):
            values = tuple(float(value) for value in getattr(self, name))
            object.__setattr__(self, name, values)
            if not all(0 <= value < math.inf for value in values):
                raise ValueError(f"{name} must be finite and not negative, got {values}")
        if self.mechanism == "banded-mf":
            self._check_band()
        elif len(self.decays) != len(self.weights) or not all(decay < 1 for decay in self.decays):
            raise ValueError(f"decays must lie in [0, 1), one for each of {len(self.weights)} weights: {self.decays}")
        elif sum(self.weights) >= 1:
            raise ValueError(f"weights must sum to less than 1, else noise grows from step to step: {self.weights}")

    def _check_band(self) -> None:
        if self.decays:
            raise ValueError(f"decays={self.decays} are for mechanism='blt'; leave them out for 'banded-mf'")
        if self.band > self.steps:
            raise ValueError(f"a band of {self.band} steps is longer than the run, which has {self.steps}; shorten it")
        if self.band > self.separation:
            raise ValueError(
                f"a band of {self.band} steps is longer than separation={self.separation}: a record would take part "
                "twice within it, which its noise is not for; shorten the band, or lower the batch size"
            )

    def check(self, unit: str, sampling: str, size_is_public: bool, max_steps: int, sample_rate: float) -> None:
        """Whether this is for a ledger of these terms: ``max_steps`` steps, each of ``sample_rate`` of the records.

        Raises:
            ValueError: it is not.
        """
        if unit != "sample" or sampling != "poisson" or not size_is_public:
            raise ValueError(
                f"mechanism={self.mechanism!r} is for unit='sample', sampling='poisson' and a number of records that "
                f"is public, got {unit!r}, {sampling!r} and size_is_public={size_is_public}; change these, or take "
                "mechanism='independent'"
            )
        if self.steps != max_steps:
            raise ValueError(
                f"the noise is correlated over {self.steps} steps, but max_steps={max_steps}: make it for as many"
            )
        if sample_rate * self.separation > 1 + 1e-9:
            raise ValueError(
                f"sample_rate={sample_rate:.4g} is more than one of {self.separation} groups of records that take "
                "turns; lower the batch size, or the separation"
            )

    @property
    def band(self) -> int:
        """How many coefficients there are: of a banded factor its band, otherwise all steps."""
        return len(self.weights) + 1 if self.mechanism == "banded-mf" else self.steps

    @property
    def period(self) -> int:
        """Steps that together are one Gaussian release: banded-mf: as many as there are groups, since each record
        is in one of them; blt: the whole run.
        """
        return self.separation if self.mechanism == "banded-mf" else self.steps

    def sample_rate(self, wanted: float) -> float:
        """The rate of a step that comes nearest to the one ``wanted``: a whole group for blt, else that itself."""
        return 1.0 / self.separation if self.mechanism == "blt" else wanted

    def release_rate(self, sample_rate: float) -> float:
        """The rate at which a release is sampled, where each step takes ``sample_rate`` of the records: banded-mf: that
        at which a group is drawn from; blt: 1, nothing is amplified.
        """
        return 1.0 if self.mechanism == "blt" else min(1.0, sample_rate * self.separation)

    def coefficients(self) -> NDArray[np.float64]:
        """``c_0 … c_(T-1)``, float64 ``[T]``."""
        c = np.zeros(self.steps)
        c[0] = 1.0
        if self.mechanism == "banded-mf":
            c[1 : self.band] = self.weights
        else:
            powers = np.power(np.array(self.decays)[:, None], np.arange(self.steps - 1))
            c[1:] = np.array(self.weights) @ powers
        return c

    @property
    def sensitivity(self) -> float:
        """What one record can change in a release, if it changes each sum that it takes part in by at most 1.

        banded-mf: the length of a column of C. blt: of the sum of the columns ``0, separation, 2·separation, …``:
        coefficients are not negative, so the record changes most where all its gradients are alike, and the first
        group takes part earliest and most often.
        """
        c = self.coefficients()
        if self.mechanism == "banded-mf":
            return float(np.linalg.norm(c))
        return float(np.linalg.norm(sum_of_columns(c, self.separation)))

    def prefix_error(self) -> float:
        """Root mean square, over the steps, of the standard deviation of the noise in the sum of all steps until then,
        for noise multiplier 1 and clipping norm 1.
        """
        added_up = np.cumsum(self.inverse())
        share = 1.0 - np.arange(self.steps) / self.steps
        return self.sensitivity * math.sqrt(float(share @ added_up**2))

    def relative_noise(self) -> float:
        """:meth:`prefix_error` relative to that of independent noise of the same noise multiplier."""
        return self.prefix_error() / math.sqrt((self.steps + 1) / 2)

    def inverse(self) -> NDArray[np.float64]:
        """Coefficients of ``C⁻¹``: how the noise of a step depends on normals of it and of those before, ``[T]``."""
        from scipy.signal import lfilter

        impulse = np.zeros(self.steps)
        impulse[0] = 1.0
        if self.mechanism == "banded-mf":
            return lfilter([1.0], [1.0, *self.weights], impulse)
        numerator, denominator = rational(np.array(self.weights), np.array(self.decays))
        return lfilter(denominator, numerator, impulse)

    def describe(self) -> str:
        """The mechanism in a statement's words."""
        return {
            "banded-mf": "banded matrix factorisation: per-sample gradients clipped, summed, Gaussian noise correlated "
            "over as many steps as there are groups of records, divided by the expected batch",
            "blt": "buffered linear Toeplitz (DP-FTRL): per-sample gradients clipped, summed, Gaussian noise "
            "correlated over all steps, divided by the expected batch",
        }[self.mechanism]

    def describe_sampling(self) -> str:
        """Who takes part in a step, in a statement's words."""
        return {
            "banded-mf": "cyclic Poisson: groups of records take turns, each record of a step's group independently, "
            "with amplification",
            "blt": "in turns: each step takes one of the groups of records whole, no amplification",
        }[self.mechanism]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Correlation:
        """What :meth:`as_dict` described.

        Raises:
            ValueError: it is no correlation.
        """
        try:
            fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
            return cls(**fields)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"correlation: {error}") from None


def records_of_turn(seed: int, client_id: int, step: int, n: int, turns: int) -> Indices:
    """The group of records that a step draws from, sorted indices into 0 … n-1: ``turns`` groups take turns.

    Who is in which group depends on the seed, the client and n alone, is public, and stays for the whole run.
    """
    return np.sort(shuffled_batches(seed, client_id, 0, n, n)[step % turns :: turns])


def sum_of_columns(coefficients: NDArray[np.float64], separation: int) -> NDArray[np.float64]:
    """Sum of the columns ``0, separation, …`` of the Toeplitz matrix with these coefficients ``[T]``."""
    total = np.zeros_like(coefficients)
    for start in range(0, len(coefficients), separation):
        total[start:] += coefficients[: len(coefficients) - start]
    return total


def rational(
    weights: NDArray[np.float64], decays: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``1 + Σ_i w_i x/(1 - λ_i x)`` as a quotient: coefficients of numerator and denominator, ascending."""
    denominator = np.ones(1)
    for decay in decays:
        denominator = np.convolve(denominator, [1.0, -decay])
    numerator = denominator.copy()
    for i, weight in enumerate(weights):
        part = np.array([0.0, weight])
        for j, decay in enumerate(decays):
            if j != i:
                part = np.convolve(part, [1.0, -decay])
        numerator += part
    return numerator, denominator
