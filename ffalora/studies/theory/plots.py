"""The plots of the measurements, by round: mean and 95% interval over seeds.

Positive quantities are drawn on a logarithmic axis with geometric means, whose intervals are those of the logarithms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from ...report.plots import STYLE, Plot, draw_line, new_axes

#: What a run writes: one mapping a round.
Rows = list[dict[str, Any]]


def relative(row: dict[str, Any]) -> float:
    """The share of a round's move that averaging factors misses."""
    found = row["discordance"]
    return found["total"] / found["update"] if found["update"] else 0.0


#: By name: title, unit, whether it is positive, and what each line shows of a row (None: nothing).
_PLOTS: dict[str, tuple[str, str, bool, dict[str, Callable[[dict[str, Any]], float | None]]]] = {
    "theory-discordance": (
        "Averaging factors: what is missed of a round's move",
        "missed / moved",
        False,
        {"": lambda row: relative(row) if row["discordance"] else None},
    ),
    "theory-noise": (
        "Quadratic share of the noise in ΔW, all steps so far",
        "share",
        False,
        {"": lambda row: row["noise"]["share"] if row.get("noise") else None},
    ),
    "theory-smoothness": (
        "Largest |eigenvalue| of the Hessian over the trained factors, and its bound",
        "|eigenvalue|",
        True,
        {
            "": lambda row: row["smoothness"]["factors"] if row.get("smoothness") else None,
            ", bound": lambda row: row["smoothness"]["bound"] if row.get("smoothness") else None,
        },
    ),
    "theory-gradients": (
        "Spread of per-sample gradient norms",
        "standard deviation / mean",
        True,
        {"": lambda row: row["gradients"]["all"]["variation"] if row.get("gradients") else None},
    ),
    "theory-loss": ("Training loss of the probe samples", "loss", True, {"": lambda row: row["loss"]}),
}


def theory_plots(methods: Mapping[str, list[Rows]]) -> list[Plot]:
    """One plot a question; those without data are left out."""
    plots = []
    with matplotlib.rc_context(STYLE):
        for name, (title, unit, is_positive, values) in _PLOTS.items():
            lines = {
                method + suffix: [
                    {
                        row["round"]: found
                        for row in rows
                        if (found := value(row)) is not None and (found > 0 or not is_positive)
                    }
                    for rows in seeds
                ]
                for suffix, value in values.items()
                for method, seeds in methods.items()
            }
            lines = {label: points for label, points in lines.items() if all(points)}
            if not lines:
                continue
            figure, axes = new_axes("round", unit)
            for i, (label, points) in enumerate(lines.items()):
                draw_line(axes, i, label, points, is_geometric=is_positive)
            if is_positive:
                _logarithmic(axes)
                title += " (geometric means)"
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
            plots.append(Plot(name, title, figure))
    return plots


def _logarithmic(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers, also between the powers of ten where there are few of these."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
