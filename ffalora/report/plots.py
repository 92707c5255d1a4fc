"""The plots of a report, drawn without global state: each function returns a matplotlib figure."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .runs import Run, by_label
from .tables import interval, metric_names, metric_title

#: Hues that keep their contrast on white and on near-black.
COLOURS = ("#1f83c9", "#e0761a", "#22a06b", "#c14fa3", "#8c72e0", "#a8842a", "#d1495b", "#2a9d9d")
#: Marks and lines that tell series apart without colour; the colour of text; matplotlib's settings for all plots.
MARKERS, LINES, INK = "os^Dv<>P", ("-", "--", "-.", ":"), "#39404a"
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.2,
    "grid.color": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 3.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "ffalora",
}
_SIZE = (4.4, 3.0)


@dataclass(frozen=True)
class Plot:
    """A figure with its name (of the file) and what it shows (read aloud by screen readers)."""

    name: str
    title: str
    figure: Figure


def run_plots(runs: Sequence[Run]) -> list[Plot]:
    """Metric and ε by round, traffic, and who holds what; plots without data are left out.

    Names may hold ``$``.
    """
    with matplotlib.rc_context(STYLE | {"text.parse_math": False}):
        plots = [_metric_plot(runs), _epsilon_plot(runs), _traffic_plot(runs), *_partition_plots(runs)]
    return [plot for plot in plots if plot is not None]


def save_plots(plots: Sequence[Plot], folder: Path, formats: Sequence[str] = ("svg", "png")) -> None:
    """Writes every plot in every format, on white."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for plot in plots:
            for name in formats:
                undated = {"metadata": {"Date": None}} if name == "svg" else {"dpi": 160}
                plot.figure.savefig(folder / f"{plot.name}.{name}", facecolor="white", **undated)


def inline_svg(plot: Plot) -> str:
    """The plot as an SVG element for a page: transparent, its ink in the page's text colour, its ids its own."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        plot.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{plot.name}-", svg)
    svg = re.sub(r'height="[\d.]+pt" ', "", svg, count=1)
    named = f'role="img" aria-label="{escape(plot.title)}"'
    return re.sub(r'<svg ([^>]*?)width="[^"]*"', lambda found: f"<svg {found[1]}{named}", svg, count=1)


def _metric_plot(runs: Sequence[Run]) -> Plot | None:
    names = metric_names(runs)
    if not names:
        return None
    figure, axes = new_axes("round", metric_title(names[0]))
    for i, (label, group) in enumerate(by_label(runs).items()):
        points = [
            {row["round"]: row["metrics"][names[0]] for row in r.rounds if names[0] in row["metrics"]}
            for r in group
            if names[0] in r.metrics
        ]
        draw_line(axes, i, label, points)
    axes.legend()
    return Plot("metric", f"{metric_title(names[0])} by round and method", figure)


def _epsilon_plot(runs: Sequence[Run]) -> Plot | None:
    private = {label: group for label, group in by_label(runs).items() if all(run.epsilon is not None for run in group)}
    if not private:
        return None
    figure, axes = new_axes("round", "ε, largest over clients")
    for i, (label, group) in enumerate(private.items()):
        spent = [{row["round"]: row["epsilon"] for row in r.rounds if row["epsilon"] is not None} for r in group]
        draw_line(axes, i, label, spent)
    targets = {run.config["privacy"]["target_epsilon"] for group in private.values() for run in group} - {None}
    for target in sorted(targets):
        axes.axhline(target, color=INK, linewidth=1, linestyle=":")
        axes.annotate(f"target {target:g}", (0.02, target), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    axes.set_ylim(0, 1.12 * axes.get_ylim()[1])
    axes.legend(loc="lower right")
    return Plot("epsilon", "ε spent by round", figure)


def _traffic_plot(runs: Sequence[Run]) -> Plot | None:
    """Bytes of each method whose rows all hold them: where they would tell which clients were drawn, they do not."""
    totals = {
        label: (group[0].total("bytes_up"), group[0].total("bytes_down")) for label, group in by_label(runs).items()
    }
    groups = {label: (up, down) for label, (up, down) in totals.items() if up is not None and down is not None}
    if not groups:
        return None
    figure, axes = new_axes("MB sent in the whole run, all clients", "", height=1.3 + 0.42 * len(groups))
    left = [0.0] * len(groups)
    for way, name in enumerate(("clients → server", "server → clients")):
        sent = [total[way] / 1e6 for total in groups.values()]
        axes.barh(range(len(groups)), sent, left=left, color=COLOURS[way], label=name, height=0.6)
        left = [a + b for a, b in zip(left, sent, strict=True)]
    _name_rows(axes, list(groups))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return Plot("traffic", "Bytes sent by method", figure)


def _partition_plots(runs: Sequence[Run]) -> list[Plot]:
    """Who holds what, once for each way of splitting that occurs (seeds change which samples, hardly how many).

    These are exact counts of the clients' data: where noise protects that data they are not drawn, and where it
    simulates protection the title says what they are.
    """
    plots: list[Plot] = []
    seen: list[dict] = []
    for label, group in by_label(runs).items():
        split = {"clients": group[0].config["clients"], "data": group[0].config["data"]}
        privacy = group[0].config["privacy"]
        is_private = privacy["unit"] != "none"
        counted = [client for client in group[0].partition if "classes" in client]
        if counted and split not in seen and not (is_private and privacy["noise"] == "secure"):
            seen.append(split)
            plots.append(_partition_plot(counted, label, len(seen), is_private))
    return plots


def _partition_plot(partition: list[dict], label: str, number_of: int, is_private: bool) -> Plot:
    shown = partition[:40]
    classes = list(dict.fromkeys(name for client in shown for name in client["classes"]))
    figure, axes = new_axes("samples", "", height=min(7.0, 1.3 + 0.3 * len(shown)))
    left = [0] * len(shown)
    for i, name in enumerate(classes):
        counts = [client["classes"].get(name, 0) for client in shown]
        axes.barh(range(len(shown)), counts, left=left, color=_class_colour(i, len(classes)), label=name, height=0.7)
        left = [a + b for a, b in zip(left, counts, strict=True)]
    _name_rows(axes, [client["client"] for client in shown])
    if len(classes) <= 8:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(4, len(classes)))
    which = "" if number_of == 1 else f" ({label})"
    more = f", first {len(shown)} of {len(partition)} clients" if len(shown) < len(partition) else ""
    exact = "; exact counts of the clients' data, for a simulation only" if is_private else ""
    name = f"partition-{number_of}" if number_of > 1 else "partition"
    return Plot(name, f"Who holds what{which}{more}{exact}", figure)


def new_axes(x: str, y: str, height: float = _SIZE[1]) -> tuple[Figure, Axes]:
    """An empty figure as wide as a column, ``height`` inches high, with the names of its axes."""
    figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def draw_line(axes: Axes, i: int, label: str, points: Sequence[dict[int, float]], is_geometric: bool = False) -> None:
    """Mean over seeds with its 95% interval, at the rounds that every seed has; the geometric mean of positive numbers
    has its interval from their logarithms.
    """
    there, back = (math.log, math.exp) if is_geometric else (float, float)
    rounds = sorted(set.intersection(*(set(p) for p in points))) if points else []
    if not rounds:
        return
    at_round = [interval([there(p[r]) for p in points]) for r in rounds]
    means = [mean for mean, _ in at_round]
    colour = COLOURS[i % len(COLOURS)]
    marker, line = MARKERS[i % len(MARKERS)], LINES[i % len(LINES)]
    axes.plot(rounds, [back(mean) for mean in means], color=colour, marker=marker, linestyle=line, label=label)
    if len(points) > 1:
        halves = [half or 0.0 for _, half in at_round]
        low, high = zip(*((back(m - h), back(m + h)) for m, h in zip(means, halves, strict=True)), strict=True)
        axes.fill_between(rounds, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _name_rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)


def _class_colour(i: int, count: int) -> str:
    if count <= len(COLOURS):
        return COLOURS[i]
    return matplotlib.colors.to_hex(matplotlib.colormaps["turbo"](0.08 + 0.84 * i / (count - 1)))
