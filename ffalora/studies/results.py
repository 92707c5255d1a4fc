"""What came out of a study: rows, the values that were chosen, verdicts, and the two tables on the disk."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..data.tasks import LOWER_IS_BETTER
from ..files.numbers import rows_to_csv
from .claims import Values, Verdict, judge_all
from .grid import Cell, Chosen, Grid, Place
from .labels import COUNTED
from .protocol import Tried

MANIFEST, TUNING, RESULTS, CELLS = "study.yaml", "tuning.csv", "results.csv", "cells"


@dataclass(frozen=True)
class CellResult:
    """A finished cell: its last metrics, ε and costs by name, and its run folder."""

    cell: Cell
    numbers: Mapping[str, float]
    folder: Path


@dataclass
class StudyResult:
    """A study as far as it is finished.

    Attributes:
        tuning: the runs among which values were chosen; results: those that are reported.
        chosen: by method and condition.
        stopped: why there is more to run; empty where there is not.
    """

    grid: Grid
    folder: Path
    tuning: list[CellResult] = field(default_factory=list)
    results: list[CellResult] = field(default_factory=list)
    chosen: dict[Place, Chosen] = field(default_factory=dict)
    stopped: str = ""

    @property
    def asked(self) -> int:
        """How many runs decide."""
        return len(self.grid.places()) * len(self.grid.seeds)

    @property
    def is_finished(self) -> bool:
        """Whether all of them are there."""
        return len(self.results) == self.asked

    @property
    def verdicts(self) -> list[Verdict]:
        """One a claim, corrected for the number of claims; none is decided before all runs are there."""
        metrics = [claim.metric or self.grid.study.metric for claim in self.grid.study.claims]
        asked = [
            (claim, self.values(metric), metric in COUNTED)
            for claim, metric in zip(self.grid.study.claims, metrics, strict=True)
        ]
        return judge_all(asked, None if self.is_finished else len(self.grid.seeds))

    def values(self, metric: str | None = None) -> Values:
        """The metric (default: the study's) of every reported cell that has it."""
        return values_of(self.results, metric or self.grid.study.metric)

    def pilot(self) -> Values:
        """The study's metric, on the validation split, of the runs with the chosen values."""
        chosen = [r for r in self.tuning if self.chosen.get((r.cell.method, r.cell.condition)) == r.cell.chosen]
        return values_of(chosen, self.grid.study.metric)

    def tried(self, place: Place) -> Tried:
        """All values that were tried for a method in a condition, by dotted key."""
        rows = [r.cell.chosen for r in self.tuning if (r.cell.method, r.cell.condition) == place]
        keys = dict.fromkeys(key for chosen in rows for key, _ in chosen)
        return {key: sorted({dict(chosen)[key] for chosen in rows}) for key in keys}


def values_of(results: Sequence[CellResult], metric: str) -> Values:
    """A metric of the cells that have it."""
    found = {(r.cell.method, r.cell.condition, r.cell.seed): r.numbers.get(metric, math.nan) for r in results}
    return {key: value for key, value in found.items() if not math.isnan(value)}


def best_of(results: Sequence[CellResult], metric: str) -> Chosen:
    """The values with the best mean of the metric over the seeds that choose; of equals, up to the rounding of their
    sums, those with the lower loss. A run without the metric, or for which it is NaN, counts as the worst possible.
    """
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    by_values: dict[Chosen, list[CellResult]] = {}
    for r in results:
        by_values.setdefault(r.cell.chosen, []).append(r)

    def mean(values: Sequence[float]) -> float:
        return statistics.fmean(-math.inf if math.isnan(value) else value for value in values)

    def merit(chosen: Chosen) -> tuple[float, float]:
        group = by_values[chosen]
        found = [sign * r.numbers.get(metric, math.nan) for r in group]
        return round(mean(found), 9), mean([-r.numbers.get("loss", math.nan) for r in group])

    return max(by_values, key=merit)


def to_csv(results: Sequence[CellResult]) -> str:
    """One row a cell: its place in the grid, what was chosen, and every number."""
    rows = [
        {"condition": r.cell.condition, "method": r.cell.method, "seed": r.cell.seed}
        | dict(r.cell.chosen)
        | dict(r.numbers)
        for r in results
    ]
    return rows_to_csv(rows)


def read_csv(path: Path, tried: Mapping[str, Tried]) -> list[CellResult]:
    """The cells of a file that :func:`to_csv` wrote; ``tried`` says by method which columns were chosen."""
    found = []
    for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))):
        method, condition, seed = row.pop("method"), row.pop("condition"), int(row.pop("seed"))
        keys = dict.fromkeys(key for keys in tried.values() for key in keys)
        chosen = tuple((key, float(row[key])) for key in tried[method] if row.get(key))
        numbers = {key: _number(value) for key, value in row.items() if key not in keys and value != ""}
        found.append(CellResult(Cell(method, condition, seed, chosen), numbers, path.parent))
    return found


def _number(text: str) -> float:
    return int(text) if text.isdecimal() else float(text)
