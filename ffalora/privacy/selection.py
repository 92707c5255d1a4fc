"""The price of choosing hyper-parameters on private data: a random number of trials, of which only the best is shown.

A sweep that trains k times on the same records spends as k runs do. Where the *number* of trials is drawn in secret
from a wide distribution, each trial's settings are drawn from a fixed list without looking at the data, and nothing
leaves but the one that scored best, the whole costs two or three times what one trial does (Papernot and Steinke,
"Hyperparameter Tuning with Rényi Differential Privacy", ICLR 2022, theorems 2 and 6; Liu and Talwar, STOC 2019). Scores
must come from within the trial, as private as it is, or from public data.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .spent import Spent

#: Draws beyond this many trials have probability below 2⁻⁶⁴ for every mean that is allowed, or take its value.
_MOST_TRIALS = 10**6
_LARGEST_MEAN = 1000.0


@dataclass(frozen=True)
class Trials:
    """How the number of trials is drawn.

    Attributes:
        mean: of the number, above 1.
        shape: η; 0 the logarithmic distribution, 1 the geometric, between and beyond the truncated negative binomial,
            infinity Poisson (which may give no trial at all).

    Raises:
        ValueError: a mean or a shape out of range.
    """

    mean: float
    shape: float = 1.0

    def __post_init__(self) -> None:
        if not 1 < self.mean <= _LARGEST_MEAN:
            raise ValueError(f"mean must lie above 1 and be at most {_LARGEST_MEAN:g} trials, got {self.mean}")
        if not self.shape >= 0:
            raise ValueError(f"shape must be at least 0 (logarithmic), got {self.shape}")

    @property
    def gamma(self) -> float:
        """γ of the truncated negative binomial with this mean and shape, by bisection."""
        low, high = 1e-12, 1.0 - 1e-12
        for _ in range(200):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self._mean_of(middle) > self.mean else (low, middle)
        return low

    def probabilities(self) -> Iterable[tuple[int, float]]:
        """How likely each number of trials is, from the least."""
        if math.isinf(self.shape):
            chance = math.exp(-self.mean)
            for k in range(_MOST_TRIALS):
                yield k, chance
                chance *= self.mean / (k + 1)
            return
        gamma, eta = self.gamma, self.shape
        scale = -1 / math.log(gamma) if eta == 0 else eta / math.expm1(-eta * math.log(gamma))
        chance = scale * (1 - gamma)
        for k in range(1, _MOST_TRIALS):
            yield k, chance
            chance *= (1 - gamma) * (k + eta) / (k + 1)

    def draw(self) -> int:
        """A number of trials, by the operating system's generator: it must stay as secret as the noise."""
        left = secrets.randbits(64) * 2.0**-64
        for number, chance in self.probabilities():
            if left < chance:
                return number
            left -= chance
        return _MOST_TRIALS

    def _mean_of(self, gamma: float) -> float:
        if self.shape == 0:
            return (1 / gamma - 1) / -math.log(gamma)
        return self.shape * (1 - gamma) / (gamma * -math.expm1(self.shape * math.log(gamma)))


def selection_epsilon(one_trial: Iterable[Spent], trials: Trials, delta: float) -> float:
    """ε of a random number of trials, of which only the best is shown, by dp-accounting's Rényi accountant.

    Args:
        one_trial: everything that one trial spends, its score included.
        trials: how their number is drawn.
        delta: δ of the whole.

    Raises:
        ValueError: steps whose Rényi divergences are not Gaussian's: groups, or noise in shares.
    """
    return _spent(one_trial, delta, trials, 1)


def sweep_epsilon(one_trial: Iterable[Spent], count: int, delta: float) -> float:
    """ε of ``count`` such trials where each result is looked at, by the same accountant; arguments as above."""
    return _spent(one_trial, delta, None, count)


def _spent(one_trial: Iterable[Spent], delta: float, trials: Trials | None, count: int) -> float:
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    steps = [dp_event.SelfComposedDpEvent(_step(part), part.steps) for part in one_trial if part.steps]
    event: dp_event.DpEvent = dp_event.ComposedDpEvent(steps)
    if trials is not None:
        event = dp_event.RepeatAndSelectDpEvent(event, trials.mean, trials.shape)
    return float(RdpAccountant().compose(event, count).get_epsilon(delta))


def _step(part: Spent) -> Any:
    from dp_accounting import dp_event

    if part.group > 1 or part.sampling == "by-server":
        raise ValueError(f"{part}: a private choice is derived for trials of Gaussian steps without groups alone")
    if part.sampling == "poisson":
        return dp_event.PoissonSampledDpEvent(part.sample_rate, dp_event.GaussianDpEvent(part.noise_multiplier))
    return dp_event.GaussianDpEvent(part.noise_multiplier / 2)
