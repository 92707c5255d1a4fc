"""Claims as contrasts of cells, computed seed by seed and tested over seeds.

A contrast is a weighted sum of cells: ``{lora@iid: 1, lora@severe: -1, ffa@iid: -1, ffa@severe: 1}`` is how much more
LoRA loses by severe skew than FFA-LoRA. All its cells of one seed share partition, head, samples and noise stream, so
that the test is paired: Student's t on the contrast's values, one a seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field

from ..config import Section
from ..report.tables import interval

Outcome = Literal["holds", "contradicted", "undecided", "unfinished", "not measured"]
#: Two-sided level of a study's claims together; points of accuracy that count as good, and as failed, beside the best.
LEVEL, GOOD, FAILED = 0.05, 0.02, 0.1
#: A difference that matters.
POINT = 0.01
#: Seeds from which on distances from a median can be compared: two are always equally far from it.
_FEWEST_DEVIATIONS = 4
_KINDS = ("", "mean", "range", "good", "failed", "deviation")
#: (method, condition, seed) -> the metric of the cell.
Values = Mapping[tuple[str, str, int], float]


class Claim(Section):
    """Something that is said to be so, and the contrast whose sign decides it.

    Attributes:
        contrast: weight by term. A term is ``method@condition``, or a word and the conditions that a pattern (or one of
            several, ``a|b-*``) matches: ``mean method@*``; ``range``, the largest difference; ``good`` and ``failed``,
            the share of conditions within ``GOOD`` of the seed's best and of those more than ``FAILED`` below it;
            ``deviation``, the mean distance from a condition's median over seeds (Brown and Forsythe's), of four
            seeds or more.
        above: the claim holds where the contrast is above this (0, or 1 for a ratio).
        ratio: the terms are multiplied, with the weights as exponents, instead of added.
        metric: where it is not the study's.
    """

    says: str
    contrast: dict[str, float]
    above: float | None = None
    ratio: bool = False
    metric: str | None = None
    paper: bool = Field(False, description="a claim of the paper that introduced FFA-LoRA")

    @property
    def is_difference(self) -> bool:
        """Whether it is a weighted sum of cells' metrics and nothing else."""
        plain = all(_parse(term)[0] in ("", "mean") for term in self.contrast)
        return plain and not self.ratio and self.metric is None

    @property
    def threshold(self) -> float:
        """What the contrast has to exceed."""
        return self.above if self.above is not None else (1.0 if self.ratio else 0.0)

    def check_names(self, methods: Sequence[str], conditions: Sequence[str]) -> None:
        """Raises ``ValueError`` where a term names a method or condition that the study does not have."""
        for term in self.contrast:
            _, method, pattern = _parse(term)
            if method not in methods or not any(_matches(name, pattern) for name in conditions):
                raise ValueError(f"claim {self.says!r}: {term!r} names nothing in the grid")


@dataclass(frozen=True)
class Verdict:
    """What the runs say about a claim.

    Attributes:
        outcome: by the test, corrected for the number of claims: above the threshold, below, or neither. Unfinished
            where seeds are still to be run: whoever looks often enough on the way finds something.
        mean, low, high: of the contrast over seeds; a ratio's are geometric. NaN where not measured; ``low`` and
            ``high`` are NaN for a single seed.
        p: of the two-sided paired test, corrected by Holm's procedure in :func:`judge_all`; NaN likewise, and where
            unfinished. Where all seeds agree exactly it is that of the sign test, and 0 for what is counted.
        seeds: how many entered; planned: how many there are to be.
    """

    claim: Claim
    outcome: Outcome
    mean: float
    low: float
    high: float
    p: float
    seeds: int
    planned: int = 0

    def to_text(self) -> str:
        """The verdict in one sentence."""
        if self.outcome == "not measured":
            return f"{self.claim.says}: not measured in this part of the grid."
        unit = "×" if self.claim.ratio else ""
        where = f"{self.mean:.3g}{unit}" if self.claim.ratio else f"{self.mean:+.4f}"
        if math.isnan(self.low):
            seeds = "one seed; more seeds are" if self.seeds == 1 else f"{self.seeds} seeds; finite numbers are"
            return f"{self.claim.says}: {where} with {seeds} needed for a verdict."
        spread = f"95% interval {self.low:.3g} to {self.high:.3g}, {self.seeds} seeds"
        if self.outcome == "unfinished":
            return f"{self.claim.says}: {where} so far ({spread}); the verdict is that of all {self.planned} seeds."
        spread += ", p < 0.0001" if self.p < 1e-4 else f", p = {self.p:.2g}"
        said = {"holds": "holds", "contradicted": "is contradicted", "undecided": "is undecided"}[self.outcome]
        small = self.outcome == "undecided" and self.is_narrow
        said += ", and a difference of a point is excluded (by its own interval, not corrected)" if small else ""
        return f"{self.claim.says}: {said}; {where} ({spread})."

    @property
    def is_narrow(self) -> bool:
        """Whether the whole interval of a difference lies within one point of zero."""
        return self.claim.is_difference and max(abs(self.low), abs(self.high)) < POINT


def judge_all(asked: Sequence[tuple[Claim, Values, bool]], planned: int | None = None) -> list[Verdict]:
    """The verdicts of claims that are tested together: each p is Holm's, so that the chance that any claim is decided
    where nothing is to be found is at most ``LEVEL``.

    Args:
        asked: claims, values of a metric, and whether that is counted: then seeds that agree show it, where those of
            a metric that is measured agree by chance.
        planned: how many seeds there are to be where some are still to be run: none is decided then.
    """
    verdicts = [judge(*each) for each in asked]
    if planned is not None:
        return [
            v if math.isnan(v.p) else replace(v, p=math.nan, outcome="unfinished", planned=planned) for v in verdicts
        ]
    order = sorted((i for i, v in enumerate(verdicts) if not math.isnan(v.p)), key=lambda i: verdicts[i].p)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * verdicts[i].p))
        outcome: Outcome = "undecided" if largest >= LEVEL else verdicts[i].outcome
        verdicts[i] = replace(verdicts[i], p=largest, outcome=outcome)
    return verdicts


def judge(claim: Claim, values: Values, is_counted: bool = False) -> Verdict:
    """The verdict of the seeds for which every term of the claim was measured, as of one claim alone."""
    per_seed = list(contrast_by_seed(claim, values).values())
    if not per_seed:
        return Verdict(claim, "not measured", math.nan, math.nan, math.nan, math.nan, 0)
    mean, half = interval(per_seed)
    threshold = math.log(claim.threshold) if claim.ratio else claim.threshold
    if half is None:
        low = high = p = math.nan
        outcome: Outcome = "undecided"
    else:
        low, high, p = mean - half, mean + half, _p_value(per_seed, threshold, is_counted)
        outcome = "holds" if low > threshold else "contradicted" if high < threshold else "undecided"
    if claim.ratio:
        mean, low, high = math.exp(mean), math.exp(low), math.exp(high)
    return Verdict(claim, outcome, mean, low, high, p, len(per_seed))


def contrast_by_seed(claim: Claim, values: Values) -> dict[int, float]:
    """The contrast (a ratio's logarithm) of every seed for which all its terms were measured."""
    found = {}
    for seed in sorted({seed for _, _, seed in values}):
        terms = [(weight, _term(term, values, seed)) for term, weight in claim.contrast.items()]
        if all(value is not None for _, value in terms):
            found[seed] = _combine(claim, [(weight, value) for weight, value in terms if value is not None])
    return found


def cell_weights(claim: Claim, places: Iterable[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """The weight of each (method, condition) in a claim about differences; those of ``places`` that it does not name
    are left out.
    """
    found: dict[tuple[str, str], float] = {}
    for term, weight in claim.contrast.items():
        _, method, pattern = _parse(term)
        cells = [place for place in places if place[0] == method and _matches(place[1], pattern)]
        for cell in cells:
            found[cell] = found.get(cell, 0.0) + weight / len(cells)
    return found


def _combine(claim: Claim, terms: Sequence[tuple[float, float]]) -> float:
    return sum(weight * (math.log(value) if claim.ratio else value) for weight, value in terms)


def _p_value(values: Sequence[float], threshold: float, is_counted: bool) -> float:
    """Two-sided paired t-test of the contrast against the threshold; the sign test where there is no spread to see."""
    if statistics.pstdev(values) == 0:
        return 1.0 if values[0] == threshold else 0.0 if is_counted else 0.5 ** (len(values) - 1)
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(values, threshold).pvalue)


def _term(term: str, values: Values, seed: int) -> float | None:
    """A term's value for one seed; None where one of its cells is missing, or too few to compare."""
    kind, method, pattern = _parse(term)
    conditions = list(dict.fromkeys(condition for _, condition, _ in values if _matches(condition, pattern)))
    known = [values[method, name, seed] for name in conditions if (method, name, seed) in values]
    if not known or len(known) < len(conditions):
        return None
    if kind == "deviation":
        return _deviation(values, method, conditions, seed)
    if kind in ("range", "good", "failed") and len(known) < 2:
        return None
    best = max(known)
    if kind == "good":
        return statistics.fmean(value >= best - GOOD for value in known)
    if kind == "failed":
        return statistics.fmean(value < best - FAILED for value in known)
    return best - min(known) if kind == "range" else statistics.fmean(known)


def _deviation(values: Values, method: str, conditions: Sequence[str], seed: int) -> float | None:
    """Mean over conditions of how far a seed is from the median over seeds; None for too few of them."""
    distances = []
    for name in conditions:
        over_seeds = [value for (m, c, _), value in values.items() if (m, c) == (method, name)]
        if len(over_seeds) < _FEWEST_DEVIATIONS:
            return None
        distances.append(abs(values[method, name, seed] - statistics.median(over_seeds)))
    return statistics.fmean(distances)


def _matches(condition: str, pattern: str) -> bool:
    return any(fnmatchcase(condition, one) for one in pattern.split("|"))


def _parse(term: str) -> tuple[str, str, str]:
    """(kind, method, pattern of conditions) of a term."""
    kind, _, cell = term.rpartition(" ")
    method, _, pattern = cell.partition("@")
    if kind not in _KINDS:
        raise ValueError(f"{term!r}: write method@condition, or {', '.join(_KINDS[1:])} and method@pattern")
    return kind, method, pattern
