"""Claims as contrasts of cells, computed seed by seed and tested over seeds.

A contrast is a weighted sum of cells: ``{lora@iid: 1, lora@severe: -1, ffa@iid: -1, ffa@severe: 1}`` is how much more
LoRA loses by severe skew than FFA-LoRA. All its cells of one seed share partition, head, samples and noise stream, so
that the test is paired: Student's t on the contrast's values, one a seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field

from ..config import Section
from ..report.tables import interval

Outcome = Literal["holds", "contradicted", "undecided", "not measured"]
#: (method, condition, seed) -> the metric of the cell.
Values = Mapping[tuple[str, str, int], float]


class Claim(Section):
    """Something that is said to be so, and the contrast whose sign decides it.

    Attributes:
        contrast: weight by term. A term is ``method@condition``; ``mean method@*`` and ``range method@*`` are the mean
            and the largest difference over the conditions that a pattern (or one of several, ``a|b-*``) matches.
        above: the claim holds where the contrast is above this (0, or 1 for a ratio).
        ratio: the terms are multiplied, with the weights as exponents, instead of added.
        metric: where it is not the study's.
    """

    says: str
    contrast: dict[str, float]
    above: float | None = None
    ratio: bool = False
    metric: str | None = None
    paper: bool = Field(False, description="one of the four claims of the paper that introduced FFA-LoRA")

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
        outcome: by the 95% interval: all of it above the threshold, all of it below, or neither.
        mean, low, high: of the contrast over seeds; a ratio's are geometric. NaN where not measured; ``low`` and
            ``high`` are NaN for a single seed.
        p: of the two-sided paired test; NaN likewise. 0 where all seeds agree exactly.
        seeds: how many entered.
    """

    claim: Claim
    outcome: Outcome
    mean: float
    low: float
    high: float
    p: float
    seeds: int

    def to_text(self) -> str:
        """The verdict in one sentence."""
        if self.outcome == "not measured":
            return f"{self.claim.says}: not measured in this part of the grid."
        unit = "×" if self.claim.ratio else ""
        where = f"{self.mean:.3g}{unit}" if self.claim.ratio else f"{self.mean:+.4f}"
        if math.isnan(self.low):
            return f"{self.claim.says}: {where} with one seed; more seeds are needed for a verdict."
        spread = f"95% interval {self.low:.3g} to {self.high:.3g}, {self.seeds} seeds, p = {self.p:.2g}"
        said = {"holds": "holds", "contradicted": "is contradicted", "undecided": "is undecided"}[self.outcome]
        return f"{self.claim.says}: {said}; {where} ({spread})."


def judge(claim: Claim, values: Values) -> Verdict:
    """The verdict of the seeds for which every term of the claim was measured."""
    per_seed = []
    for seed in sorted({seed for _, _, seed in values}):
        terms = [(weight, _term(term, values, seed)) for term, weight in claim.contrast.items()]
        if all(value is not None for _, value in terms):
            per_seed.append(_combine(claim, [(weight, value) for weight, value in terms if value is not None]))
    if not per_seed:
        return Verdict(claim, "not measured", math.nan, math.nan, math.nan, math.nan, 0)
    mean, half = interval(per_seed)
    threshold = math.log(claim.threshold) if claim.ratio else claim.threshold
    if half is None:
        low = high = p = math.nan
        outcome: Outcome = "undecided"
    else:
        low, high, p = mean - half, mean + half, _p_value(per_seed, threshold)
        outcome = "holds" if low > threshold else "contradicted" if high < threshold else "undecided"
    if claim.ratio:
        mean, low, high = math.exp(mean), math.exp(low), math.exp(high)
    return Verdict(claim, outcome, mean, low, high, p, len(per_seed))


def _combine(claim: Claim, terms: Sequence[tuple[float, float]]) -> float:
    return sum(weight * (math.log(value) if claim.ratio else value) for weight, value in terms)


def _p_value(values: Sequence[float], threshold: float) -> float:
    """Two-sided paired t-test of the contrast against the threshold."""
    if statistics.pstdev(values) == 0:
        return 1.0 if values[0] == threshold else 0.0
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(values, threshold).pvalue)


def _term(term: str, values: Values, seed: int) -> float | None:
    """A term's value for one seed; None where one of its cells is missing, or a range has one condition alone."""
    kind, method, pattern = _parse(term)
    conditions = dict.fromkeys(condition for _, condition, _ in values if _matches(condition, pattern))
    found = [values.get((method, condition, seed)) for condition in conditions]
    known = [value for value in found if value is not None]
    if not known or len(known) < len(found):
        return None
    if kind == "range":
        if len(known) < 2:
            return None
        return max(known) - min(known)
    return statistics.fmean(known)


def _matches(condition: str, pattern: str) -> bool:
    return any(fnmatchcase(condition, one) for one in pattern.split("|"))


def _parse(term: str) -> tuple[str, str, str]:
    """(kind, method, pattern of conditions) of a term."""
    kind, _, cell = term.rpartition(" ")
    method, _, pattern = cell.partition("@")
    if kind not in ("", "mean", "range"):
        raise ValueError(f"{term!r}: write method@condition, 'mean method@pattern' or 'range method@pattern'")
    return kind, method, pattern
