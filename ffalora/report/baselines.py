"""What runs had to beat, in a table and in a sentence: was it worth it?"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from .runs import Run, by_label
from .tables import Table, epsilon_text, interval_text, spent_text

_METRIC = "accuracy"


def baseline_table(runs: Sequence[Run]) -> Table | None:
    """Accuracy of every method and baseline, the best first; None where no such baseline was computed."""
    if not _by_name(runs):
        return None
    entries = []
    for label, group in by_label(runs).items():
        if values := [run.metrics[_METRIC] for run in group if _METRIC in run.metrics]:
            said = (f"{label} (this run)", interval_text(values), spent_text(group))
            entries.append((statistics.fmean(values), (*said, "fine-tuned adapters and head")))
    for name, rows in _by_name(runs).items():
        values = [row["accuracy"] for row in rows]
        spent = [row["epsilon"] for row in rows if row["epsilon"] is not None]
        epsilon = epsilon_text(max(spent)) if spent else ("not private" if rows[0]["is_bound"] else "0")
        entries.append((statistics.fmean(values), (name, interval_text(values), epsilon, rows[0]["about"])))
    ordered = [row for _, row in sorted(entries, key=lambda entry: -entry[0])]
    secure = any(run.config["privacy"]["noise"] == "secure" for run in runs)
    left_out = (
        " Baselines on the clients' data are left out: with secure noise they would spend budget." if secure else ""
    )
    return Table(
        "Was it worth it? Each row could be had instead, with an ε of its own." + left_out,
        ("what", _METRIC, "ε", "how"),
        tuple(ordered),
        prose=("how",),
    )


def verdicts(runs: Sequence[Run]) -> list[str]:
    """A sentence for each method: how far above or below the best baseline that keeps the promise."""
    found = []
    for label, group in by_label(runs).items():
        values = [run.metrics[_METRIC] for run in group if _METRIC in run.metrics]
        able = {
            name: statistics.fmean(row["accuracy"] for row in rows)
            for name, rows in _by_name(group).items()
            if not rows[0]["is_bound"]
        }
        if not values or not able:
            continue
        best, reached = max(able, key=lambda name: able[name]), statistics.fmean(values)
        gain = round(100 * (reached - able[best]), 1)
        against = f"the best baseline, {best} ({able[best]:.3f})"
        if gain > 0:
            found.append(f"{label}: {reached:.3f}, {gain:.1f} points above {against}.")
        else:
            below = f"{-gain:.1f} points below" if gain else "as good as"
            found.append(f"{label}: {reached:.3f}, NOT above a trivial baseline: {below} {against}.")
    return found


def _by_name(runs: Sequence[Run]) -> dict[str, list[dict]]:
    """What was computed and has an accuracy, by name; methods of one seed that share a baseline count it once."""
    rows: dict[str, list[tuple[int, dict]]] = {}
    for run in runs:
        for row in (row for row in run.baselines if _METRIC in row):
            found = rows.setdefault(row["name"], [])
            if (run.config["seed"], row) not in found:
                found.append((run.config["seed"], row))
    return {name: [row for _, row in found] for name, found in rows.items()}
