"""The tables of a study: what came out, what was chosen, what the claims say, what it cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ..report.tables import Table
from .claims import Claim, Values, Verdict
from .grid import MOST_SEEDS, TUNING_SEEDS, Grid
from .labels import (
    COSTS,
    capital,
    condition_labels,
    conditions_in_words,
    key_title,
    number_title,
    spread_text,
    values_text,
)
from .power import EFFECT, POWER, ClaimPower
from .protocol import Tried
from .results import CellResult, StudyResult
from .tuning import edges

LOWEST, HIGHEST = "↓", "↑"


def metric_table(result: StudyResult, metric: str | None = None) -> Table:
    """A metric (default: the study's) of every method under every condition: mean ± 95% interval over seeds."""
    name = metric or result.grid.study.metric
    return _values_table(result.grid, name, result.values(name))


def pilot_table(result: StudyResult) -> Table | None:
    """The study's metric at the chosen values in the runs that chose them; None where nothing was chosen."""
    if not (found := result.pilot()):
        return None
    table = _values_table(result.grid, result.grid.study.metric, found)
    return replace(table, caption=f"In the runs that chose values, on the validation split: {table.caption}")


def _values_table(grid: Grid, name: str, found: Values) -> Table:
    def cell(method: str, condition: str) -> str:
        return spread_text(name, [v for (m, c, _), v in sorted(found.items()) if (m, c) == (method, condition)])

    labels = condition_labels(grid)
    methods = list(grid.methods)
    if len(labels) <= max(3, len(methods)):
        head = ("method", *labels.values())
        rows = [(method, *(cell(method, condition) for condition in labels)) for method in methods]
    else:
        head = (grid.study.axis, *methods)
        rows = [(label, *(cell(method, condition) for method in methods)) for condition, label in labels.items()]
    counts = sorted(set(Counter((method, condition) for method, condition, _ in found).values())) or [0]
    seeds = str(counts[-1]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    spread = f"mean over {seeds} seeds ± 95% interval (Student's t)" if counts[-1] > 1 else "one seed"
    text = f"{capital(number_title(name))} by method and {grid.study.axis}: {spread}."
    words = conditions_in_words(grid)
    return Table(f"{text} {capital(words)}." if words else text, head, tuple(rows))


def chosen_table(result: StudyResult) -> Table | None:
    """What the validation split chose for every method and condition, marked where it lies at the edge of what was
    tried; None where there was nothing to choose.
    """
    grid = result.grid
    if not result.tuning:
        return None
    labels = condition_labels(grid)
    rows = []
    for condition, label in labels.items():
        source = grid.conditions[condition].like or condition
        name = label if source == condition else f"{label} (of “{labels.get(source, source)}”)"
        rows.append((name, *(_chosen_text(result, method, condition, source) for method in grid.methods)))
    keys = dict.fromkeys(key for method in grid.methods for key in grid.first_tried[method])
    tried = "; ".join(f"{method} {_tried_text(grid.first_tried[method])}" for method in grid.methods)
    caption = (
        f"The {' and '.join(map(key_title, keys))} with the best mean {number_title(grid.study.metric)} of "
        f"{len(TUNING_SEEDS)} seeds on the validation split, which no verdict uses. Tried at first: {tried}; and more "
        f"beyond a best value at an edge. {HIGHEST} or {LOWEST}: the best is still the largest or smallest that was "
        "tried, so that a better one may lie beyond."
    )
    return Table(caption, (grid.study.axis, *grid.methods), tuple(rows))


def claims_table(verdicts: Sequence[Verdict]) -> Table:
    """One row a claim: contrast, 95% interval, p, seeds, outcome."""
    rows = tuple(
        (v.claim.says + " †" * v.claim.paper, contrast_text(v), range_text(v), p_text(v), str(v.seeds), v.outcome)
        for v in verdicts
    )
    caption = (
        "A contrast is computed seed by seed (its cells share partition, samples and noise stream); a claim holds "
        "where its mean lies above the threshold (0, or that of a ratio) with p < 0.05. p: paired t-test, two-sided, "
        "corrected by Holm's procedure for all claims of this table, once every seed is run; intervals are of each "
        "claim alone."
    )
    if any(term.startswith("range ") for v in verdicts for term in v.claim.contrast):
        caption += (
            " A claim of what moves accuracy compares ranges, largest minus smallest over conditions; the noisier "
            "method has the larger range even where no condition matters."
        )
    if any(v.claim.paper for v in verdicts):
        caption += " †: a claim of the paper that introduced FFA-LoRA."
    return Table(caption, ("claim", "contrast", "95% interval", "p", "seeds", "verdict"), rows)


def power_table(needs: Sequence[ClaimPower]) -> Table | None:
    """One row a claim about differences: its deviation in the pilot and the seeds that it needs; None without one."""
    if not needs:
        return None
    rows = tuple((n.says, f"{n.deviation:.4f}", str(n.seeds or f"more than {MOST_SEEDS}")) for n in needs)
    caption = (
        f"Before the runs that decide: seeds with which a difference of {EFFECT:g} is found with probability "
        f"{POWER:g}, corrected for the number of claims, and the interval is expected to reach a point on either side. "
        "The deviation is that of the contrast from seed to seed, pooled over claims, in the runs that chose values."
    )
    return Table(caption, ("claim", "deviation", "seeds needed"), rows)


def cost_table(result: StudyResult) -> Table | None:
    """Traffic, trained numbers and whatever else was counted, by method; by condition where that matters. Time only
    where every run had the machine to itself. None before the first run.
    """
    grid = result.grid
    if not result.results:
        return None
    shown = [name for name in COSTS if grid.study.counts_costs or "seconds" not in name]
    names = [name for name in shown if any(name in r.numbers for r in result.results)]
    labels = condition_labels(grid)
    counted = [name for name in names if "seconds" not in name and name != "epsilon"]
    differ = any(
        len({r.numbers[name] for r in result.results if r.cell.method == method and name in r.numbers}) > 1
        for name in counted
        for method in grid.methods
    )
    groups: dict[str, list[CellResult]] = {}
    for r in result.results:
        key = f"{r.cell.method}, {labels[r.cell.condition]}" if differ else r.cell.method
        groups.setdefault(key, []).append(r)
    rows = tuple((key, *(_cost_text(name, group) for name in names)) for key, group in groups.items())
    caption = "Mean ± 95% interval over runs. Traffic of all clients together, but for the first column's one client."
    return Table(caption, ("method", *map(number_title, names)), rows)


def contrast_text(verdict: Verdict) -> str:
    """The mean contrast with its sign or as a ratio."""
    return _contrast(verdict.claim, verdict.mean)


def range_text(verdict: Verdict) -> str:
    """``low to high`` of the 95% interval; a dash where there is none."""
    if math.isnan(verdict.low):
        return "–"
    return f"{_contrast(verdict.claim, verdict.low)} to {_contrast(verdict.claim, verdict.high)}"


def p_text(verdict: Verdict) -> str:
    """The test's p, to two digits."""
    if math.isnan(verdict.p):
        return "–"
    return "< 0.0001" if verdict.p < 1e-4 else f"{verdict.p:.2g}"


def training_seconds(result: StudyResult) -> float:
    """Seconds of training in all finished runs, those that chose values included."""
    return sum(r.numbers.get("seconds", 0.0) for r in [*result.tuning, *result.results])


def _contrast(claim: Claim, value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.3g}×" if claim.ratio else f"{value:+.4f}" if abs(value) < 100 else f"{value:+,.0f}"


def _chosen_text(result: StudyResult, method: str, condition: str, source: str) -> str:
    chosen = result.chosen.get((method, source))
    if chosen is None:
        return "–"
    tried = result.tried((method, source))
    at_edge = edges(tried, chosen) if tried else []
    marks = "".join(HIGHEST if value == max(tried[key]) else LOWEST for key, value in chosen if key in at_edge)
    factors = result.grid.conditions[condition].factor
    used = [(key, value * factors.get(key, 1.0)) for key, value in chosen]
    return f"{values_text(used)} {marks}".strip()


def _tried_text(tried: Tried) -> str:
    lists = {key: ", ".join(f"{value:g}" for value in values) for key, values in tried.items()}
    return " and ".join(text if key == "optimizer.lr" else f"{key_title(key)} {text}" for key, text in lists.items())


def _cost_text(name: str, group: Sequence[CellResult]) -> str:
    values = [r.numbers[name] for r in group if name in r.numbers]
    return spread_text(name, [max(values)] if values and name == "epsilon" else values)
