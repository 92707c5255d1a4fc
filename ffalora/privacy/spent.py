"""What was spent on a data set, as it is written down: steps with everything that their ε depends on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

SAMPLINGS = ("poisson", "shuffled", "full", "without-replacement", "by-server")
UNITS = ("sample", "user", "client")
#: Which data sets are neighbours: one record adds nothing, is absent, or is another.
ADJACENCIES = ("zero-out", "add/remove", "replace")
#: Whole numbers that are written down lie below it.
WHOLE_LIMIT = 2**32


class Spent(NamedTuple):
    """A number of equal steps.

    Attributes:
        noise_multiplier: σ.
        sample_rate: q.
        steps: how many.
        sampling: how batches were drawn; only 'poisson' is amplified. 'by-server': by the server that noise protects
            from, and noise is a sum of shares that clients brought (``privacy.noise_at: clients``).
        unit: what is protected, 'sample', 'user' or 'client'.
        adjacency: 'zero-out' where the number of records is public, 'add/remove' where it is not, 'replace' where
            batches are drawn without Poisson sampling.
        group: the most records of one unit, where each is drawn and clipped by itself; one step may then move by that
            many times the clipping norm.
        trials: above 1, ``steps`` counts private choices instead, each of the best of a random number of trials of
            which this is the mean: after every trial another one is begun with probability ``1 - 1/trials``.
        trial_steps: of each of these trials.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    sampling: str = "poisson"
    unit: str = "sample"
    adjacency: str = "zero-out"
    group: int = 1
    trials: float = 1.0
    trial_steps: int = 1

    def chosen(self, trials: float) -> Spent:
        """One choice of the best of ``trials`` trials, on average, each of which takes these steps."""
        return self if trials == 1 else self._replace(steps=min(1, self.steps), trials=trials, trial_steps=self.steps)


def spent_from(values: Any) -> Spent:
    """The steps that a file describes as a list of the nine values, of which the last three may be left out: a group of
    1, and steps that are no choice.

    Raises:
        ValueError: the wrong number or kind of values.
    """
    if not isinstance(values, list | tuple) or not 6 <= len(values) <= len(Spent._fields):
        raise ValueError(f"steps that were spent must be the values {', '.join(Spent._fields)}, got {values!r}")
    every: list[Any] = [*values, *(1, 1.0, 1)[len(values) - 6 :]]
    sigma, rate, steps, sampling, unit, adjacency, group, trials, trial_steps = every
    reals, wholes = (sigma, rate, trials), (steps, group, trial_steps)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in reals)
    whole = all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**63 for v in wholes)
    if not numbers or not whole or not group or not trial_steps:
        raise ValueError(f"noise_multiplier, sample_rate, steps, group and trials must be numbers, got {values!r}")
    if sigma < 0 or not 0 <= rate <= 1 or trials < 1:
        raise ValueError(
            "noise_multiplier must not be negative, sample_rate must lie in [0, 1], and trials be at least 1, got "
            f"{values!r}"
        )
    for name, value, known in (
        ("sampling", sampling, SAMPLINGS),
        ("unit", unit, UNITS),
        ("adjacency", adjacency, ADJACENCIES),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}")
    return Spent(float(sigma), float(rate), steps, sampling, unit, adjacency, group, float(trials), trial_steps)


def check_one_unit(history: Iterable[Spent]) -> None:
    """What protects one kind of unit says nothing of another.

    Raises:
        ValueError: two kinds are in the history.
    """
    units = sorted({part.unit for part in history if part.steps})
    if len(units) > 1:
        raise ValueError(
            f"units {' and '.join(units)} do not compose: steps that protected one say nothing about the other. Keep "
            "a ledger for each, and state both"
        )


def unit_of(history: Sequence[Spent]) -> str:
    """The unit that steps of one kind protect; 'sample' where there are none."""
    return history[0].unit if history else "sample"


def joint_adjacency(history: Sequence[Spent]) -> str:
    """The adjacency under which all parts compose: their own where it is one, else zero-out, which every kind covers
    with the noise it is counted with.
    """
    kinds = {part.adjacency for part in history if part.steps}
    return kinds.pop() if len(kinds) == 1 else "zero-out"


def largest(histories: Iterable[Sequence[Spent]]) -> tuple[Spent, ...]:
    """An upper bound for a record that is in any one of several disjoint data sets: of each kind of step, the most
    that one of them took.
    """
    most: dict[Spent, int] = {}
    for history in histories:
        own: dict[Spent, int] = {}
        for part in history:
            kind = part._replace(steps=0)
            own[kind] = own.get(kind, 0) + part.steps
        for kind, steps in own.items():
            most[kind] = max(most.get(kind, 0), steps)
    return tuple(kind._replace(steps=steps) for kind, steps in sorted(most.items()) if steps)


def fits(value: Any, kind: str) -> bool:
    """Whether a value of a file is of the kind that an annotation names."""
    if value is None:
        return "None" in kind
    if kind.startswith("tuple"):
        return isinstance(value, list | tuple)
    if kind.startswith("str"):
        return isinstance(value, str)
    if kind.startswith("bool"):
        return isinstance(value, bool)
    if kind.startswith("int"):
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < WHOLE_LIMIT**4  # no NaN, no Inf, nothing that a float cannot hold
