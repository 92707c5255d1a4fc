"""The plots of the measurements, by round: mean and 95% interval over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import matplotlib

from ...report.plots import _STYLE, Plot, _axes, _line

#: What a run writes: one mapping a round.
Rows = list[dict[str, Any]]


def relative(row: dict[str, Any]) -> float:
    """The share of a round's move that averaging factors misses."""
    found = row["discordance"]
    return found["total"] / found["update"] if found["update"] else 0.0


#: By name: title, unit, whether the scale is logarithmic, and what each line shows of a row (None: nothing).
_PLOTS: dict[str, tuple[str, str, bool, dict[str, Callable[[dict[str, Any]], float | None]]]] = {
    "theory-discordance": (
        "Averaging factors: what is missed of a round's move", "missed / moved", False,
        {"": lambda row: relative(row) if row["discordance"] else None},
    ),
    "theory-noise": (
        "Quadratic share of the noise in ΔW, all steps so far", "share", False,
        {"": lambda row: row["noise"]["share"] if row.get("noise") else None},
    ),
    "theory-smoothness": (
        "Largest |eigenvalue| of the Hessian over the trained factors, and its bound", "|eigenvalue|", True,
        {
            "": lambda row: row["smoothness"]["factors"] if row.get("smoothness") else None,
            ", bound": lambda row: row["smoothness"]["bound"] if row.get("smoothness") else None,
        },
    ),
    "theory-gradients": (
        "Spread of per-sample gradient norms", "standard deviation / mean", False,
        {"": lambda row: row["gradients"]["all"]["variation"] if row.get("gradients") else None},
    ),
    "theory-loss": ("Training loss of the probe samples", "loss", False, {"": lambda row: row["loss"]}),
}  # fmt: skip


def theory_plots(methods: Mapping[str, list[Rows]]) -> list[Plot]:
    """One plot a question; those without data are left out."""
    plots = []
    with matplotlib.rc_context(_STYLE):
        for name, (title, unit, is_log, values) in _PLOTS.items():
            lines = {
                method + suffix: [
                    {row["round"]: found for row in rows if (found := value(row)) is not None} for rows in seeds
                ]
                for suffix, value in values.items()
                for method, seeds in methods.items()
            }
            lines = {label: points for label, points in lines.items() if all(points)}
            if not lines:
                continue
            figure, axes = _axes("round", unit)
            for i, (label, points) in enumerate(lines.items()):
                _line(axes, i, label, points)
            if is_log:
                axes.set_yscale("log")
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
            plots.append(Plot(name, title, figure))
    return plots
