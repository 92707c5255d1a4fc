"""Clipping thresholds, the sensitivity of a clipped sum as it is computed, and thresholds that follow a quantile.

The clipping itself is ``ffalora_kernels.clip_reduce_``; here is decided what it clips to. Derivations are in
``docs/privacy.md``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

_DOUBLE_ROUNDOFF = 2.0**-53
#: Thresholds may exceed C by round-off alone: ``clip_reduce_`` keeps rows below them by 2⁻²⁰, far more.
_SLACK, _WASTE = 2.0**-40, 1e-6


def roundoff_bound(rows: int, unit_roundoff: float = _DOUBLE_ROUNDOFF) -> float:
    """η: by how much more than C, relatively, two sums of clipped rows can differ because they are rounded.

    ``η = 2·m·γ`` with ``γ = (m+1)u / (1-(m+1)u)``, for sums of at most m rows, in any order and any cut into physical
    batches: each term is rounded once by its product and at most m times by additions.

    Args:
        rows: m, the most rows that a sum can have (the data-set size: a Poisson sample can be everything).
        unit_roundoff: u of the accumulator; 2⁻⁵³ for float64.

    Raises:
        ValueError: negative rows, or so many that the bound is void.
    """
    if rows < 0:
        raise ValueError(f"rows must not be negative, got {rows}")
    product = (rows + 1) * unit_roundoff
    if product >= 0.5:
        raise ValueError(f"rows={rows} sums accumulate more round-off than their terms; use a wider accumulator")
    return 2.0 * rows * product / (1.0 - product)


def sensitivity(max_grad_norm: float, rows: int) -> float:
    """C(1+η): what adding or removing one row can change in the *computed* sum. The noise's standard deviation is σ
    times this.

    Replacing one row changes it by at most twice as much; the accountants halve σ for that themselves.

    Raises:
        ValueError: a C that is not positive and finite, which would clip nothing.
    """
    return positive_norm(max_grad_norm) * (1.0 + roundoff_bound(rows))


def positive_norm(max_grad_norm: float) -> float:
    """C, if it is one.

    Raises:
        ValueError: it is not positive and finite.
    """
    if not 0 < max_grad_norm < math.inf:
        raise ValueError(f"max_grad_norm must be positive and finite, got {max_grad_norm}")
    return max_grad_norm


def per_layer_thresholds(max_grad_norm: float, weights: Sequence[float]) -> Tensor:
    """One threshold a group of columns, ``C·√(w/Σw)``, float64 ``[G]``: their squares sum to C², in exact arithmetic
    not above.

    Equal weights treat layers alike; the numbers of parameters give every column the same share.

    Raises:
        ValueError: a C or a weight that is not positive and finite.
    """
    if not weights or not all(w > 0 and math.isfinite(w) for w in weights):
        raise ValueError(f"weights must be positive and finite, one for each group of columns, got {list(weights)}")
    max_grad_norm = positive_norm(max_grad_norm)
    share = torch.tensor(weights, dtype=torch.float64)
    thresholds = max_grad_norm * (share / share.sum()).sqrt() * (1.0 - 2.0**-48)  # round-off stays below 2⁻⁵⁰ a factor
    check_thresholds(thresholds, max_grad_norm)
    return thresholds


def check_thresholds(thresholds: Tensor | Sequence[float], max_grad_norm: float) -> None:
    """Refuses thresholds whose squares do not sum to C².

    Raises:
        ValueError: the sum of squares exceeds C² (a sample could change more than the noise hides), falls short of it
        by more
            than one part in a million (noise would be wasted), or a threshold is not positive and finite.
    """
    values = [float(t) for t in thresholds]
    if not values or not all(t > 0 and math.isfinite(t) for t in values):
        raise ValueError(f"thresholds must be positive and finite, got {values}")
    total = sum(Fraction(t) ** 2 for t in values)
    limit = Fraction(max_grad_norm) ** 2
    if total > limit * Fraction(1 + _SLACK) or total < limit * Fraction(1 - _WASTE):
        raise ValueError(
            f"the squares of the {len(values)} thresholds sum to {float(total):.9g}, but max_grad_norm={max_grad_norm} "
            f"needs {float(limit):.9g}; multiply each by {max_grad_norm / math.sqrt(total):.6g} "
            "or use per_layer_thresholds"
        )


@dataclass
class AdaptiveQuantileClipping:
    """A clipping norm that follows a quantile of the gradient norms, privately (Andrew et al., NeurIPS 2021, algorithm
    1).

    Each step releases, beside the noisy sum, the noisy number of rows whose norm was at most C, and moves C by
    ``exp(-learning_rate · (fraction - quantile))``. A row counts ±1/2, so it moves the count by 1/2; with noise of
    standard deviation ``bit_noise`` on it, and ``σ_sum`` on the sum, the pair is a Gaussian mechanism of noise
    multiplier σ with ``1/σ² = 1/σ_sum² + 1/(2·bit_noise)²``: the accountant is told σ, the sum gets the larger
    ``σ_sum``.

    Attributes:
        noise_multiplier: σ of the pair, what the accountant counts.
        expected_rows: expected rows of a step (the divisor), a constant of the configuration.
        max_grad_norm: C of the next step.
        quantile: share of rows that should stay unclipped.
        learning_rate: of log C.
        bit_noise: standard deviation of the noise on the count; None is the larger of ``expected_rows/20`` and 2σ.
        lowest, highest: bounds of C.
    """

    noise_multiplier: float
    expected_rows: float
    max_grad_norm: float
    quantile: float = 0.5
    learning_rate: float = 0.2
    bit_noise: float | None = None
    lowest: float = 1e-6
    highest: float = 1e6

    def __post_init__(self) -> None:
        if self.bit_noise is None:
            self.bit_noise = max(self.expected_rows / 20, 2 * self.noise_multiplier)
        for name in ("expected_rows", "max_grad_norm", "learning_rate", "lowest", "highest"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not 0 < self.quantile < 1:
            raise ValueError(f"quantile must lie between 0 and 1, got {self.quantile}")
        if not self.lowest <= self.max_grad_norm <= self.highest:
            raise ValueError(
                f"max_grad_norm={self.max_grad_norm} must lie in lowest … highest = {self.lowest} … {self.highest}"
            )
        if not 0 <= self.noise_multiplier < 2 * self.bit_noise:
            raise ValueError(
                f"bit_noise={self.bit_noise} must exceed half of noise_multiplier={self.noise_multiplier}: "
                "the count alone would spend more than the step may; raise bit_noise"
            )

    @property
    def sum_noise_multiplier(self) -> float:
        """σ_sum: standard deviation of the noise on the sum over its sensitivity; a little above
        ``noise_multiplier``.
        """
        if self.noise_multiplier == 0:
            return 0.0
        return (self.noise_multiplier**-2 - (2 * float(self.bit_noise or 0.0)) ** -2) ** -0.5

    def update(self, norms: Tensor, normal: float) -> float:
        """Moves C after a step and returns it.

        Args:
            norms: ``[S]`` norms of all rows of the logical batch, before clipping; may be empty. NaN and Inf count as
                clipped.
            normal: one standard normal from the run's noise source, used nowhere else.
        """
        return self.move(self.noisy_count(norms, normal))

    def noisy_count(self, norms: Tensor, normal: float) -> float:
        """What a step releases of the norms; arguments as in :meth:`update`.

        Processes that share a step add up what each finds among its own rows; ``normal`` is 0 on all but one of them.
        """
        below = float((norms <= self.max_grad_norm).sum())
        return below - norms.numel() / 2 + float(self.bit_noise or 0.0) * normal * (self.noise_multiplier > 0)

    def move(self, count: float) -> float:
        """Moves C by the noisy count of all rows and returns it."""
        fraction = 0.5 + count / self.expected_rows
        moved = self.max_grad_norm * math.exp(-self.learning_rate * (fraction - self.quantile))
        self.max_grad_norm = min(max(moved, self.lowest), self.highest)
        return self.max_grad_norm

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> AdaptiveQuantileClipping:
        """The policy that :meth:`state_dict` described.

        Raises:
            ValueError: missing or unknown entries, or values out of range.
        """
        names = {f.name for f in fields(cls)}
        if set(state) != names:
            raise ValueError(
                f"adaptive clipping has wrong entries: {sorted(set(state) ^ names)} are missing or unknown"
            )
        return cls(**{name: float(value) for name, value in state.items()})
