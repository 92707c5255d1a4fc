"""ε of a sequence of subsampled Gaussian mechanisms by the libraries' own mathematics, with what can be shared kept.

Simulations ask for ε after every round of every client; the Rényi moments and the loss distribution of a single step do
not depend on how often it is taken, so they are computed once for each (noise multiplier, sample rate).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

#: Error of the PRV accountant in ε; it is added to the estimate, so the answer is an upper bound.
PRV_ERROR = 0.01
#: Above this ε (by the Rényi bound) every accountant answers with the Rényi bound: e^ε soon overflows.
LARGEST_NUMERICAL_EPSILON = 300.0
#: Numerical compositions are used down to this δ: Fourier transforms round off some 1e-16 of probability a step, and a
#: smaller δ may drown in it (ε was found a millionth too small at 1e-9, and 6% at 1e-14). Below, ε is the Rényi bound.
_LEAST_NUMERICAL_DELTA, _LEAST_NUMERICAL_DELTA_PER_STEP = 1e-8, 1e-14
#: Grid of the privacy loss: coarse up to this many steps, where it costs less than 1e-3 in ε, and fine above.
_PLD_COARSE_STEPS, _PLD_COARSE_INTERVAL, _PLD_FINE_INTERVAL = 500, 1e-3, 1e-4
#: How much wider it is where there are mixtures, whose points are found numerically: ε is 0.1% larger, in a tenth of
#: the time.
_GROUP_INTERVALS = 10
#: Rényi orders beyond Opacus's own, which end at 63: with those alone no noise meets an ε of 0.1 at δ = 1e-5.
_LARGE_ORDERS = (96, 128, 192, 256, 512, 1024)


class Gaussians(NamedTuple):
    """Equal Poisson-subsampled Gaussian steps of sensitivity 1: ``noise_multiplier`` σ, ``sample_rate`` q, how many.

    With a ``group`` of k records of one unit, each drawn by itself, what a step moves by is the number of them that are
    drawn, Binomial(k, q): the mixture of Gaussians of Choquette-Choo et al. (ICLR 2024) and Charles et al. (2024).
    Of ``discrete`` noise σ says no more than that Rényi divergences of whole orders α are at most α/(2σ²), at q = 1.
    With ``trials`` above 1 these are so many private choices, each among trials of ``trial_steps`` steps.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    group: int = 1
    discrete: bool = False
    trials: float = 1.0
    trial_steps: int = 1

    @property
    def by_moments(self) -> bool:
        """Whether Rényi divergences are all that is known of these steps."""
        return self.discrete or self.trials > 1

    @property
    def simple(self) -> Gaussians:
        """Steps without groups that spend no less: any of the group's records drawn, all of them move the sum. Scaled
        down at random, and with noise added, they give the mixture; at q = 1 they are the same.
        """
        if self.group == 1:
            return self
        drawn = -math.expm1(self.group * math.log1p(-self.sample_rate)) if self.sample_rate < 1 else 1.0
        return self._replace(noise_multiplier=self.noise_multiplier / self.group, sample_rate=drawn, group=1)


@lru_cache(maxsize=65536)
def compose(history: tuple[Gaussians, ...], delta: float, accountant: str) -> float:
    """ε at ``delta`` of Poisson-subsampled Gaussian steps of sensitivity 1 (add/remove), all σ and q positive.

    Raises:
        ValueError: the accountant cannot compute it; the message says why.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # The libraries warn of log(0) at q = 1 and of a best Rényi order at the end of their list: bounds all the same.
        warnings.simplefilter("ignore")
        spent = _rdp(history, delta)
        bound_is_loose = accountant == "pld" and any(part.group > 1 for part in history)
        is_numerical = accountant != "rdp" and not needs_moments(history, delta)
        if is_numerical and (spent <= LARGEST_NUMERICAL_EPSILON or bound_is_loose):
            try:
                spent = _prv(history, delta) if accountant == "prv" else _pld(history, delta)
            except (RuntimeError, ValueError, IndexError) as error:
                raise ValueError(
                    f"accountant={accountant!r} cannot compute ε of {[tuple(h) for h in history]} "
                    f"at delta={delta}: {error}; take another accountant"
                ) from error
    return max(0.0, float(spent))


def needs_moments(history: Sequence[Gaussians], delta: float) -> bool:
    """Whether ε is by the Rényi bound, whatever the accountant: nothing else is known of a part of the history, or
    ``delta`` is so small that the round-off of a numerical composition may hide it.
    """
    steps = sum(part.steps for part in history)
    drowns = delta < max(_LEAST_NUMERICAL_DELTA, _LEAST_NUMERICAL_DELTA_PER_STEP * steps)
    return drowns or any(part.by_moments for part in history)


def _rdp(history: tuple[Gaussians, ...], delta: float) -> float:
    """Opacus's Rényi accountant, at more orders."""
    from opacus.accountants.analysis.rdp import get_privacy_spent

    moments = sum(part.steps * _moments_of(part.simple) for part in history)
    return float(get_privacy_spent(orders=_orders(), rdp=moments, delta=delta)[0])


@lru_cache(maxsize=1)
def _orders() -> np.ndarray:
    from opacus.accountants import RDPAccountant

    return np.array([*RDPAccountant.DEFAULT_ALPHAS, *_LARGE_ORDERS])


def _moments_of(part: Gaussians) -> np.ndarray:
    """Rényi divergences of one step at all orders, or of one choice: Papernot and Steinke, "Hyperparameter Tuning
    with Rényi Differential Privacy", ICLR 2022, theorem 2 at η = 1 (a geometric number of trials, of which γ is one
    over the mean), at the best of these orders for what they call λ.
    """
    moments = _moments(part.noise_multiplier, part.sample_rate, part.discrete)
    if part.trials == 1:
        return moments
    orders, trial, mean = _orders(), part.trial_steps * moments, math.log(part.trials)
    return trial + 2.0 * np.min((1.0 - 1.0 / orders) * trial + mean / orders) + mean / (orders - 1.0)


@lru_cache(maxsize=4096)
def _moments(sigma: float, rate: float, discrete: bool) -> np.ndarray:
    """Rényi divergences of one step at all orders."""
    from opacus.accountants.analysis.rdp import compute_rdp

    orders = _orders()
    if discrete:  # the divergence grows with the order: what holds at the next whole one holds here
        return np.ceil(orders) / (2 * sigma**2)
    return np.asarray(compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=orders))


def _prv(history: tuple[Gaussians, ...], delta: float) -> float:
    """Opacus's numerical composition, on the domain and mesh that bound its error (Gopi et al. 2021, remark 5.6)."""
    from opacus.accountants.analysis import prv

    delta_error, history = delta / 1000, tuple(part.simple for part in history)
    steps = sum(h.steps for h in history)
    reach = max(
        _rdp(history, delta_error / 4),
        *(_rdp((Gaussians(h.noise_multiplier, h.sample_rate, 1),), delta_error / (8 * steps)) for h in history),
        PRV_ERROR,
    )
    mesh = PRV_ERROR / math.sqrt(steps * math.log(12 / delta_error) / 2)
    domain = prv.Domain.create_aligned(-(reach + 3), reach + 3, mesh)
    losses = [prv.PoissonSubsampledGaussianPRV(h.sample_rate, h.noise_multiplier) for h in history]
    cut = [prv.TruncatedPrivacyRandomVariable(loss, domain.t_min, domain.t_max) for loss in losses]
    total = prv.compose_heterogeneous(
        dprvs=[prv.discretize(loss, domain) for loss in cut], num_self_compositions=[h.steps for h in history]
    )
    return total.compute_epsilon(delta, delta_error, PRV_ERROR)[2]


def _pld(history: tuple[Gaussians, ...], delta: float) -> float:
    """dp-accounting's privacy-loss distributions, rounded pessimistically."""
    few = sum(h.steps for h in history) <= _PLD_COARSE_STEPS
    interval = _PLD_COARSE_INTERVAL if few else _PLD_FINE_INTERVAL
    if any(h.group > 1 and h.sample_rate < 1 for h in history):
        interval *= _GROUP_INTERVALS  # of all parts: only distributions on one grid compose
    total = None
    for each in history:
        part = _pld_step(each.noise_multiplier, each.sample_rate, interval, each.group).self_compose(each.steps)
        total = part if total is None else total.compose(part)
    found = 0.0 if total is None else total.get_epsilon_for_delta(delta)
    return found if math.isfinite(found) else _rdp(history, delta)


@lru_cache(maxsize=32)
def _pld_step(sigma: float, rate: float, interval: float, group: int) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as pld

    if group > 1 and rate < 1:
        from scipy.stats import binom

        drawn = np.arange(group + 1)
        return pld.from_mixture_gaussian_mechanism(
            sigma,
            drawn.tolist(),
            binom.pmf(drawn, group, rate).tolist(),
            value_discretization_interval=interval,
        )
    sigma = sigma / group
    return pld.from_gaussian_mechanism(sigma, sampling_prob=rate, value_discretization_interval=interval)
