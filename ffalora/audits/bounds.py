"""Lower bounds of ε from guesses: what an attacker's success disproves, with confidence.

A guess says whether a canary was among the data. An (ε,δ)-private mechanism limits how often guesses can be right; more
right guesses than that, and the claim is false. ``one_run_bound`` needs one run with many canaries (Steinke, Nasr,
Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023, theorem 5.2); ``many_runs_bound`` needs
independent trials of one canary. Both assume nothing about the mechanism. ``gaussian_bound`` assumes that its trade-off
curve is that of a Gaussian (Nasr et al., USENIX Security 2023), and is tighter.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import optimize, stats

_LARGEST = 30.0
#: Terms of the δ-part that are looked at: the fraction that is maximised falls off after a few standard deviations.
_TERMS = 20_000


def one_run_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """The largest probability with which an (ε,δ)-private mechanism lets ``correct`` or more of ``guesses`` be right.

    Args:
        canaries: each was included with probability one half, independently of the others.
        guesses: how many of them were guessed, the rest abstained from.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"need 0 ≤ correct ≤ guesses ≤ canaries, got {correct}, {guesses}, {canaries}")
    accuracy = 1.0 / (1.0 + math.exp(-epsilon))
    pure = float(stats.binom.sf(correct - 1, guesses, accuracy))
    short = np.arange(1, min(correct, _TERMS) + 1)
    just_below = np.cumsum(stats.binom.pmf(correct - short, guesses, accuracy))
    excess = float((just_below / short).max()) if correct else 0.0
    return min(1.0, pure + 2.0 * canaries * delta * excess)


def one_run_bound(canaries: int, guesses: int, correct: int, delta: float, significance: float) -> float:
    """The largest ε that ``correct`` right guesses disprove at this significance; 0 where they disprove none."""
    return _largest_refuted(lambda e: one_run_p_value(canaries, guesses, correct, e, delta), significance)


def many_runs_bound(
    hits: int, trials_in: int, false_alarms: int, trials_out: int, delta: float, significance: float
) -> float:
    """ε of ``TPR ≤ e^ε FPR + δ`` with both rates at the ends of their Clopper-Pearson intervals.

    Args:
        hits: runs with the canary that were guessed to have it, of ``trials_in``.
        false_alarms: runs without it that were guessed to have it, of ``trials_out``.
    """
    lowest = _rate_below(hits, trials_in, significance / 2)
    highest = _rate_above(false_alarms, trials_out, significance / 2)
    return max(0.0, math.log((lowest - delta) / highest)) if lowest > delta else 0.0


def gaussian_bound(
    hits: int, trials_in: int, false_alarms: int, trials_out: int, delta: float, significance: float
) -> float:
    """ε at δ of the smallest Gaussian shift μ that both rates allow; for mechanisms with a Gaussian trade-off curve."""
    missed = _rate_above(trials_in - hits, trials_in, significance / 2)
    alarms = _rate_above(false_alarms, trials_out, significance / 2)
    shift = float(stats.norm.isf(alarms) - stats.norm.ppf(missed))
    return gaussian_epsilon(shift, delta) if shift > 0 else 0.0


def gaussian_epsilon(shift: float, delta: float) -> float:
    """ε of a Gaussian mechanism whose two outcomes are ``shift`` standard deviations apart (Dong, Roth, Su 2022)."""

    def excess(epsilon: float) -> float:
        first = stats.norm.cdf(-epsilon / shift + shift / 2)
        return float(first - math.exp(epsilon + stats.norm.logcdf(-epsilon / shift - shift / 2)) - delta)

    return 0.0 if excess(0.0) <= 0 else float(optimize.brentq(excess, 0.0, 10 * shift * (shift + 10)))


def _largest_refuted(p_value: Callable[[float], float], significance: float) -> float:
    if p_value(0.0) > significance:
        return 0.0
    low, high = 0.0, _LARGEST
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(middle) <= significance else (low, middle)
    return low


def _rate_below(count: int, trials: int, significance: float) -> float:
    return 0.0 if count == 0 else float(stats.beta.ppf(significance, count, trials - count + 1))


def _rate_above(count: int, trials: int, significance: float) -> float:
    return 1.0 if count == trials else float(stats.beta.isf(significance, count + 1, trials - count))
