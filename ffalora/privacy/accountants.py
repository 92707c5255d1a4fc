"""How much privacy a run spends: ε from the noise, and the noise from ε, by three accountants.

``noise_multiplier`` is the standard deviation of the noise on the *sum* of clipped gradients divided by the clipping
norm C (or by C(1+η) where sums carry a round-off bound, see :mod:`ffalora.privacy.clipping`), as in Opacus.

* ``pld``, the default: privacy-loss distributions, discretised pessimistically (Doroshenko et al., PETS 2022), from
  dp-accounting.
* ``rdp``: Rényi moments (Mironov 2017; Mironov, Talwar, Zhang 2019), Opacus's accountant, at its orders and at
  larger ones for a small ε. An upper bound, 5 to 35% above the others in ordinary settings, more at small ε.
* ``prv``: numerical composition (Gopi, Lee, Wutschitz, NeurIPS 2021), Opacus's accountant with an error of at most 0.01
  in ε, which is added to what it returns.

Poisson sampling is counted with amplification, under zero-out adjacency (a record is replaced by one that contributes
nothing; the number of records is public) or, where that number is kept secret, under add/remove. Both have the same ε.
Other samplings are counted under replace-one adjacency: the sum then moves by up to 2C, so a step is a Gaussian
mechanism of noise multiplier σ/2, and all steps are composed without amplification, whether or not a record took part
in each of them. A zeroed record is one way to replace it, and one that is absent counts as zeroed, so histories of
different kinds compose under zero-out. Where the server chose who takes part ('by-server'), adjacency is zero-out, all
take part in every step, and the noise is discrete: its σ bounds Rényi divergences of whole orders
(:mod:`ffalora.privacy.skellam`), by which the whole history is then counted, whatever the accountant. So is a history
with a private choice among a random number of trials (Papernot and Steinke, ICLR 2022). At δ below 1e-8 too, since the
round-off of numerical compositions may exceed it, so that what they say is no upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache

from .composition import Gaussians, compose, needs_moments
from .spent import SAMPLINGS, Spent, check_one_unit, unit_of

ACCOUNTANTS = ("rdp", "prv", "pld")
_LARGEST_NOISE = 1e6
#: How far below its target, relatively, a calibrated ε may stay.
_TOLERANCE = 1e-3


def epsilon(
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    delta: float,
    accountant: str = "pld",
    sampling: str = "poisson",
    group: int = 1,
) -> float:
    """ε of ``steps`` equal steps.

    Args:
        noise_multiplier: σ; 0 gives infinity.
        sample_rate: probability with which each record is drawn in a step (ignored unless ``sampling='poisson'``).
        steps: of all rounds together; 0 gives 0.
        delta: the δ of (ε, δ).
        accountant: 'rdp', 'prv' or 'pld'.
        sampling: 'poisson' (zero-out or add/remove adjacency), or 'shuffled', 'full', 'without-replacement'
            (replace-one, sensitivity 2C), or 'by-server' (zero-out, Rényi divergences alone).
        group: most records of one unit, where each is drawn and clipped by itself; ε is then that of the unit.

    Raises:
        ValueError: a value out of range, or a setting which the accountant cannot compute (the message names another).
    """
    return epsilon_of([Spent(noise_multiplier, sample_rate, steps, sampling, group=group)], delta, accountant)


def epsilon_of(history: Iterable[Spent], delta: float, accountant: str = "pld") -> float:
    """ε of a history in which each part has a sampling of its own, composed in any order. See :func:`epsilon`.

    Raises:
        ValueError: also parts that protect different units, which do not compose.
    """
    if accountant not in ACCOUNTANTS:
        raise ValueError(f"accountant must be one of {ACCOUNTANTS}, got {accountant!r}")
    history = [Spent(*part) for part in history]
    check_one_unit(history)
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie between 0 and 1 (smaller than 1/dataset size), got {delta}")
    steps: dict[Gaussians, int] = {}
    for part in history:
        _check_entry(part)
        if part.steps and part.sample_rate:
            kind = _mechanism(part)
            steps[kind] = steps.get(kind, 0) + int(part.steps)
    if not steps:
        return 0.0
    if any(kind.noise_multiplier == 0 for kind in steps):
        return math.inf
    parts = tuple(kind._replace(steps=count) for kind, count in sorted(steps.items()))
    return compose(parts, float(delta), accountant)


def accountant_of(history: Iterable[Spent], accountant: str, delta: float) -> str:
    """The accountant that ε of a history is by: the one asked for, unless a part of it allows Rényi moments alone, or
    ``delta`` is too small for another.
    """
    parts = [_mechanism(part)._replace(steps=part.steps) for part in history]
    return "rdp" if needs_moments(parts, delta) else accountant


def _mechanism(part: Spent) -> Gaussians:
    """What one of these steps (or choices) is counted as."""
    sigma, rate = float(part.noise_multiplier), float(part.sample_rate)
    if part.sampling != "poisson":
        sigma, rate = sigma if part.sampling == "by-server" else sigma / 2, 1.0
    return Gaussians(sigma, rate, 0, part.group, part.sampling == "by-server", float(part.trials), part.trial_steps)


@lru_cache(maxsize=256)
def noise_multiplier_for(
    target_epsilon: float,
    target_delta: float,
    sample_rate: float,
    steps: int,
    accountant: str = "pld",
    sampling: str = "poisson",
    prior: tuple[Spent, ...] = (),
    group: int = 1,
    trials: float = 1.0,
) -> float:
    """The smallest noise multiplier found whose ε over all ``steps``, after those of ``prior``, does not exceed
    ``target_epsilon``.

    The ε that it spends lies in ``[0.999·target, target]``: never above. ``steps`` are all that may be taken
    in all rounds together; calibrating one round at a time spends the target once a round. With ``trials`` above 1 they
    are those of one trial of a private choice (see :class:`~ffalora.privacy.spent.Spent`), and the target is for the
    whole of it.

    Raises:
        ValueError: a value out of range, or a target that no noise multiplier below 10⁶ meets.
    """
    if not (target_epsilon > 0 and math.isfinite(target_epsilon)):
        raise ValueError(
            f"target_epsilon must be positive and finite, got {target_epsilon}; without a target give noise_multiplier"
        )
    if steps < 1:
        raise ValueError(f"steps must be at least 1 to calibrate noise, got {steps}")
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate must lie in (0, 1] to calibrate noise, got {sample_rate}")
    before = epsilon_of(prior, target_delta, accountant)
    if before * (1 + _TOLERANCE) >= target_epsilon:
        raise ValueError(
            f"target_epsilon={target_epsilon:g} is spent: earlier runs on this data (prior) have spent {before:.4g} at "
            f"delta={target_delta:g}; raise the target, or train on other data"
        )

    def excess(sigma: float) -> float:
        this_run = Spent(sigma, sample_rate, steps, sampling, unit_of(prior), group=group)
        spent = epsilon_of([*prior, this_run.chosen(trials)], target_delta, accountant)
        return math.log(spent / target_epsilon) if spent > 0 else -math.inf

    found = least_noise(excess, float(group))
    if found is None:
        run = Spent(1.0, sample_rate, steps, sampling, unit_of(prior), group=group).chosen(trials)
        by = accountant_of([*prior, run], accountant, target_delta)
        remedy = "accountant='pld'" if by == accountant else "a larger delta"
        raise ValueError(
            f"target_epsilon={target_epsilon} cannot be met in {steps} steps by accountant={by!r}: "
            f"its error is larger; take {remedy}, fewer steps or a larger target"
        )
    return found


def least_noise(excess: Callable[[float], float], start: float = 1.0) -> float | None:
    """A σ with ``log(1 - tolerance) ≤ excess(σ) ≤ 0``, where ``excess`` is ``log(ε(σ)/target)`` and falls; None where
    no σ up to the largest has it. From ``start``, by false position in (log σ, log ε) with the Illinois rule;
    excess(high) ≤ 0 throughout.
    """
    low = high = start
    at_low = at_high = excess(start)
    while at_high > 0:
        low, at_low, high = high, at_high, 2 * high
        if high > _LARGEST_NOISE:
            return None
        at_high = excess(high)
    while at_low <= 0:
        high, at_high, low = low, at_low, low / 2
        at_low = excess(low)
    goal = math.log1p(-_TOLERANCE / 2)
    weight_low = weight_high = 1.0
    lowered: bool | None = None
    while at_high < math.log1p(-_TOLERANCE) and high / low > 1 + 1e-9:
        down, up = weight_low * (at_low - goal), weight_high * (goal - at_high)
        share = min(max(down / (down + up), 0.02), 0.98) if math.isfinite(down + up) else 0.5
        sigma = math.exp(math.log(low) + share * math.log(high / low))
        at_sigma = excess(sigma)
        if at_sigma > 0:
            low, at_low, weight_low = sigma, at_sigma, 1.0
            weight_high *= 0.5 if lowered is False else 1.0
        else:
            high, at_high, weight_high = sigma, at_sigma, 1.0
            weight_low *= 0.5 if lowered is True else 1.0
        lowered = at_sigma <= 0
    return high


def affordable_steps(
    target_epsilon: float, delta: float, wanted: Spent, accountant: str = "pld", prior: tuple[Spent, ...] = ()
) -> int:
    """How many of the ``wanted`` steps, after those of ``prior``, keep ε within the target."""

    def within(steps: int) -> bool:
        return epsilon_of([*prior, wanted._replace(steps=steps)], delta, accountant) <= target_epsilon

    if within(wanted.steps):
        return wanted.steps
    enough, too_many = 0, wanted.steps
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        enough, too_many = (middle, too_many) if within(middle) else (enough, middle)
    return enough


def _check_entry(part: Spent) -> None:
    sigma, rate, steps, group = part.noise_multiplier, part.sample_rate, part.steps, part.group
    if part.sampling not in SAMPLINGS:
        raise ValueError(f"sampling must be one of {SAMPLINGS}, got {part.sampling!r}")
    if not (sigma >= 0 and math.isfinite(sigma)):
        raise ValueError(f"noise_multiplier must be finite and not negative, got {sigma}")
    if not 0 <= rate <= 1:
        raise ValueError(f"sample_rate must lie in [0, 1] (expected batch / dataset size), got {rate}")
    if steps < 0 or steps != int(steps):
        raise ValueError(f"steps must be a whole number and not negative, got {steps}")
    if group < 1 or group != int(group):
        raise ValueError(f"group must be a whole number of records, at least 1, got {group}")
    if not (part.trials >= 1 and math.isfinite(part.trials)) or part.trial_steps < 1:
        raise ValueError(
            f"trials and trial_steps must be finite and at least 1, got {part.trials} and {part.trial_steps}"
        )
