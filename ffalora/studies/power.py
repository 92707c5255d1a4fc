"""How many seeds a study needs, from a pilot's variance: before the runs that decide, and from nothing that they show.

The pilot are the runs that chose values, at the values chosen: three seeds on the validation split. A contrast with
weights ``w`` of cells that each vary by ``τ`` beside what a seed gives to all of them has deviation ``τ·√Σw²`` (a mean
shares its weight out to its conditions); ``τ`` is pooled over the claims that the pilot can evaluate. Claims about
ranges and shares have no such deviation and take the study's number.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.stats import nct, t

from .claims import LEVEL, POINT, Claim, Values, cell_weights, contrast_by_seed
from .grid import FEWEST_SEEDS, MOST_SEEDS

#: What a study should find, and how surely.
EFFECT, POWER = 0.015, 0.8


@dataclass(frozen=True)
class ClaimPower:
    """A claim's share in the number of seeds.

    Attributes:
        says: the claim; deviation: of its contrast from seed to seed.
        seeds: with which a difference of ``EFFECT`` is found with ``POWER``, and the interval is
            expected to reach a point on either side; None above ``MOST_SEEDS``.
    """

    says: str
    deviation: float
    seeds: int | None


def power_of(seeds: int, deviation: float, level: float = LEVEL) -> float:
    """The probability that the two-sided paired t-test at ``level`` finds ``EFFECT`` with so many seeds."""
    if deviation < EFFECT / 1000:  # surely found, and nct has no number where its shift is very large
        return 1.0
    limit, shift = t.ppf(1 - level / 2, seeds - 1), EFFECT / deviation * math.sqrt(seeds)
    return float(nct.sf(limit, seeds - 1, shift) + nct.cdf(-limit, seeds - 1, shift))


def seeds_for(deviation: float, level: float = LEVEL) -> int | None:
    """The fewest seeds, at least ``FEWEST_SEEDS``, that find ``EFFECT`` with ``POWER`` and whose 95% interval is
    expected to be within a point of its mean; None where ``MOST_SEEDS`` do not.
    """
    for seeds in range(FEWEST_SEEDS, MOST_SEEDS + 1):
        half = t.ppf(0.975, seeds - 1) * deviation / math.sqrt(seeds)
        if power_of(seeds, deviation, level) >= POWER and half <= POINT:
            return seeds
    return None


def claims_power(claims: Sequence[Claim], pilot: Values, places: Sequence[tuple[str, str]]) -> list[ClaimPower]:
    """The seeds that each claim about differences of accuracy needs, at the first level of Holm's procedure.

    Args:
        claims: of the study; pilot: its metric at the chosen values.
        places: every (method, condition) of the verdict, of which the pilot may have a part.
    """
    differences = [claim for claim in claims if claim.is_difference]
    units, tried = [], {(method, condition) for method, condition, _ in pilot}
    for claim in differences:
        values = list(contrast_by_seed(claim, pilot).values())
        weight = _weight(claim, tried)
        if len(values) > 1 and weight:
            units.append(statistics.variance(values) / weight)
    if not units:
        return []
    unit, level = statistics.fmean(units), LEVEL / max(len(claims), 1)
    deviations = {claim.says: math.sqrt(unit * _weight(claim, places)) for claim in differences}
    return [ClaimPower(says, deviation, seeds_for(deviation, level)) for says, deviation in deviations.items()]


def planned_seeds(needs: Sequence[ClaimPower]) -> int:
    """The seeds that all claims need; ``MOST_SEEDS`` where one needs more, the fewest where nothing is known."""
    return max([FEWEST_SEEDS, *(need.seeds or MOST_SEEDS for need in needs)])


def _weight(claim: Claim, places: Iterable[tuple[str, str]]) -> float:
    """``Σw²`` over the cells of a seed."""
    return sum(weight**2 for weight in cell_weights(claim, places).values())
