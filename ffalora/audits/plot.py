"""Audits on disk: one CSV of claims and bounds, and a plot of the one against the other."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib

from ..report.plots import COLOURS, INK, STYLE, Plot, new_axes, save_plots
from .audit import Audit


def write_audits(audits: Sequence[Audit], folder: Path) -> list[Path]:
    """Writes ``audit.csv``, ``audit.svg`` and ``audit.png``; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "audit.csv"
    with open(table, "w", newline="", encoding="utf-8") as file:
        rows = [asdict(audit) for audit in audits]
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)
    save_plots([audit_plot(audits)], folder)
    return [table, folder / "audit.svg", folder / "audit.png"]


def audit_plot(audits: Sequence[Audit]) -> Plot:
    """Lower bounds over the claimed ε; what lies above the line disproves the claim."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes("ε claimed", "ε disproved (lower bound)")
        most = 1.15 * max(max(a.claimed_epsilon, a.epsilon_lower, a.epsilon_lower_gaussian or 0.0) for a in audits)
        axes.plot([0, most], [0, most], color=INK, linewidth=1, linestyle=":", label="the claim itself")
        axes.plot([0, most], [0, most / 2], color=INK, linewidth=1, linestyle="-.", label="half of it")
        for i, method in enumerate(dict.fromkeys(a.method for a in audits)):
            mine = [a for a in audits if a.method == method]
            claims = [a.claimed_epsilon for a in mine]
            axes.plot(claims, [a.epsilon_lower for a in mine], "o", color=COLOURS[i], label=method)
            bounds = [
                (a.claimed_epsilon, a.epsilon_lower_gaussian) for a in mine if a.epsilon_lower_gaussian is not None
            ]
            if bounds:
                x, y = zip(*bounds, strict=True)
                axes.plot(x, y, "^", color=COLOURS[i], markerfacecolor="none", label=f"{method}, if Gaussian")
        axes.set_xlim(0, most)
        axes.set_ylim(0, most)
        axes.legend(loc="upper left")
    return Plot("audit", "Lower bounds of ε from canaries, beside the claim", figure)
