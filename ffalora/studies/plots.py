"""The plots of a study: the metric with its intervals, the claims' contrasts, the validation runs."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..report.plots import COLOURS, INK, LINES, MARKERS, STYLE, Plot, new_axes
from ..report.tables import interval
from .claims import Verdict
from .grid import Grid
from .labels import COSTS, capital, condition_labels, number_text, number_title
from .results import StudyResult

_OUTCOME = {
    "holds": (COLOURS[2], "o"),
    "contradicted": (COLOURS[6], "s"),
    "undecided": (INK, "D"),
    "unfinished": (INK, "x"),
}
_SPREAD = 0.56
_MOST_LINES = 12


def study_plots(result: StudyResult) -> list[Plot]:
    """All plots for which there is data."""
    with matplotlib.rc_context(STYLE):
        plots = [*_metric_plots(result), *_claim_plots(result), *_tuning_plot(result)]
    return plots


def _metric_plots(result: StudyResult) -> list[Plot]:
    """One for the study's metric, and one for each other that a claim uses."""
    metrics = dict.fromkeys([result.grid.study.metric, *(c.metric for c in result.grid.study.claims if c.metric)])
    return [_metric_plot(result, name) for name in metrics if result.values(name)]


def _metric_plot(result: StudyResult, metric: str) -> Plot:
    """Mean, interval and seeds of every cell. Few cells stand side by side, many in rows."""
    grid, title = result.grid, number_title(metric)
    cells: dict[tuple[str, str], list[float]] = {}
    for (method, condition, _), value in sorted(result.values(metric).items()):
        cells.setdefault((method, condition), []).append(value)
    labels = condition_labels(grid)
    name, heading = f"metric-{metric}".replace("_", "-"), capital(f"{title} by {grid.study.axis} and method")
    is_small = len(labels) <= 5 and len(grid.methods) <= 5
    if is_small:
        figure, axes = new_axes(grid.study.axis, title)
        series = {m: {i: cells.get((m, c), []) for i, c in enumerate(labels)} for m in grid.methods}
        _draw(axes, series, is_row=False)
        axes.set_xticks(
            range(len(labels)), [textwrap.fill(text, max(7, 42 // len(labels))) for text in labels.values()]
        )
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.grid(axis="x", visible=False)
    else:
        by_method = len(grid.methods) > len(labels)
        rows = {m: m for m in grid.methods} if by_method else labels
        groups = labels if by_method else {m: m for m in grid.methods}
        place = (lambda row, group: (row, group)) if by_method else (lambda row, group: (group, row))
        series = {t: {i: cells.get(place(r, g), []) for i, r in enumerate(rows)} for g, t in groups.items()}
        figure, axes = new_axes(title, "", height=1.1 + len(rows) * max(0.32, 0.17 * len(groups)))
        _draw(axes, series, is_row=True)
        axes.set_yticks(range(len(rows)), [textwrap.fill(text, 18) for text in rows.values()])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
    if metric in COSTS:
        (axes.yaxis if is_small else axes.xaxis).set_major_formatter(lambda value, _: number_text(metric, value))
        (axes.yaxis if is_small else axes.xaxis).set_major_locator(MaxNLocator(5))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(5, len(series)), columnspacing=1.2)
    return Plot(name, heading, figure)


def _draw(axes: Axes, series: Mapping[str, Mapping[int, Sequence[float]]], is_row: bool) -> None:
    """Every series beside the others around whole positions: seeds faintly, then mean and interval."""
    step = _SPREAD / max(len(series), 1)
    for k, (label, at) in enumerate(series.items()):
        colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
        known = {i: values for i, values in at.items() if values}
        places = [i + step * (k - (len(series) - 1) / 2) for i in known]
        for place, values in zip(places, known.values(), strict=True):
            if len(values) > 1:
                across = [place + step * 0.34 * (n / (len(values) - 1) - 0.5) for n in range(len(values))]
                points = (values, across) if is_row else (across, values)
                axes.plot(*points, linestyle="", marker="o", markersize=3, markeredgewidth=0, color=colour, alpha=0.5)
        spreads = [interval(values) for values in known.values()]
        means, halves = [mean for mean, _ in spreads], [half or math.nan for _, half in spreads]
        look: dict[str, Any] = {
            "color": colour,
            "marker": marker,
            "markersize": 5,
            "linestyle": "",
            "elinewidth": 1.5,
            "capsize": 3,
        }
        if is_row:
            axes.errorbar(means, places, xerr=halves, label=label, **look)
        else:
            axes.errorbar(places, means, yerr=halves, label=label, **look)
            axes.plot(places, means, color=colour, linewidth=0.8, linestyle=LINES[k % len(LINES)], alpha=0.55)


def _claim_plots(result: StudyResult) -> list[Plot]:
    """A forest plot for each kind of contrast: those in one unit share an axis."""
    groups: dict[tuple[bool, str], list[Verdict]] = {}
    for verdict in result.verdicts:
        if verdict.outcome != "not measured":
            metric = verdict.claim.metric or result.grid.study.metric
            groups.setdefault((verdict.claim.ratio, "" if verdict.claim.ratio else metric), []).append(verdict)
    return [_forest(group, ratio, metric) for (ratio, metric), group in groups.items()]


def _forest(verdicts: Sequence[Verdict], ratio: bool, metric: str) -> Plot:
    """Contrasts with their intervals below the claims' words, and the line that they have to be right of."""
    texts = [textwrap.wrap(f"{v.claim.says}: {v.outcome}", 70) for v in verdicts]
    heights = [0.17 * len(text) + 0.32 for text in texts]
    axis = "ratio" if ratio else f"difference of {number_title(metric)}"
    figure, axes = new_axes(f"{axis}, mean and 95% interval", "", height=sum(heights) + 0.75)
    if ratio:
        axes.set_xscale("log")
    top = 0.0
    for verdict, text, height in zip(verdicts, texts, heights, strict=True):
        colour, marker = _OUTCOME[verdict.outcome]
        y = top + height - 0.17
        axes.text(0.01, top + 0.05, "\n".join(text), transform=axes.get_yaxis_transform(), va="top", fontsize=8)
        if verdict.low == verdict.low:
            axes.plot([verdict.low, verdict.high], [y, y], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot([verdict.mean], [y], marker=marker, markersize=6, color=colour)
        axes.plot([verdict.claim.threshold] * 2, [y - 0.13, y + 0.13], color=INK, linewidth=1.2)
        top += height
    axes.set_ylim(top, 0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    axes.margins(x=0.08)
    return Plot(f"claims-{metric or 'ratio'}".replace("_", "-"), f"Claims: {axis}", figure)


def _tuning_plot(result: StudyResult) -> list[Plot]:
    """The metric on the validation split (mean over seeds) by learning rate, where that is all that was chosen."""
    grid, metric = result.grid, result.grid.study.metric
    runs = [r for r in result.tuning if [key for key, _ in r.cell.chosen] == ["optimizer.lr"] and metric in r.numbers]
    conditions = list(dict.fromkeys(r.cell.condition for r in runs))
    if not runs or len(runs) < len(result.tuning) or len(grid.methods) * len(conditions) > _MOST_LINES:
        return []
    figure, axes = new_axes("learning rate", f"{number_title(metric)}, validation split")
    axes.set_xscale("log")
    for k, method in enumerate(grid.methods):
        colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
        for i, condition in enumerate(conditions):
            points: dict[float, list[float]] = {}
            for r in runs:
                if (r.cell.method, r.cell.condition) == (method, condition):
                    points.setdefault(r.cell.chosen[0][1], []).append(r.numbers[metric])
            if points:
                x = sorted(points)
                y = [statistics.fmean(points[value]) for value in x]
                label = method if i == 0 else None
                axes.plot(x, y, color=colour, marker=marker, linestyle=LINES[i % 4], linewidth=1.2, label=label)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(5, len(grid.methods)), columnspacing=1.2)
    return [Plot("tuning", f"Where the best learning rate lies{_styles_in_words(grid, conditions)}", figure)]


def _styles_in_words(grid: Grid, conditions: Sequence[str]) -> str:
    """Which line style stands for which condition."""
    if len(conditions) < 2:
        return ""
    if len(conditions) > len(LINES):
        return ", one line a condition"
    labels = condition_labels(grid)
    styles = ("solid", "dashed", "dash-dotted", "dotted")
    return " (" + ", ".join(f"{labels.get(c, c)} {style}" for c, style in zip(conditions, styles, strict=False)) + ")"
