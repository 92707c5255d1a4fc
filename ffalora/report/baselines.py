"""What runs had to beat, in a table and in a sentence: was it worth it?"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from .runs import Run, by_label
from .tables import Table, epsilon_text, interval_text, spent_text

_METRIC = "accuracy"


class Baseline(NamedTuple):
    """What runs had to beat: its name, the same told apart from others of that name, and its row of each seed."""

    name: str
    title: str
    rows: list[dict[str, Any]]


def baselines_of(runs: Sequence[Run], number: str) -> list[Baseline]:
    """The baselines that have a ``number``, such as ``accuracy``; methods whose rows agree at every seed that both have
    share one. Those of other data, another ε or another model are others, whatever their name.
    """
    found: list[tuple[str, dict[int, dict[str, Any]], list[str]]] = []
    for label, group in by_label(runs).items():
        own: dict[str, dict[int, dict[str, Any]]] = {}
        for run in group:
            for row in (row for row in run.baselines if number in row):
                own.setdefault(row["name"], {})[run.config["seed"]] = row
        for name, rows in own.items():
            for other, known, labels in found:
                if other == name and rows.keys() & known and all(known.get(seed, r) == r for seed, r in rows.items()):
                    known |= rows
                    labels.append(label)
                    break
            else:
                found.append((name, rows, [label]))
    times = Counter(name for name, _, _ in found)
    return [
        Baseline(name, name if times[name] == 1 else f"{name} (of {', '.join(labels)})", list(rows.values()))
        for name, rows, labels in found
    ]


def baseline_table(runs: Sequence[Run]) -> Table | None:
    """Accuracy of every method and baseline, the best first; None where no such baseline was computed."""
    baselines, entries = baselines_of(runs, _METRIC), []
    if not baselines:
        return None
    for label, group in by_label(runs).items():
        if values := [run.metrics[_METRIC] for run in group if _METRIC in run.metrics]:
            said = (f"{label} (this run)", interval_text(values), spent_text(group))
            entries.append((statistics.fmean(values), (*said, "fine-tuned adapters and head")))
    for _, title, rows in baselines:
        values = [row[_METRIC] for row in rows]
        spent = [row["epsilon"] for row in rows if row["epsilon"] is not None]
        epsilon = epsilon_text(max(spent)) if spent else ("not private" if rows[0]["is_bound"] else "0")
        entries.append((statistics.fmean(values), (title, interval_text(values), epsilon, rows[0]["about"])))
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
            name: statistics.fmean(row[_METRIC] for row in rows)
            for name, _, rows in baselines_of(group, _METRIC)
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
