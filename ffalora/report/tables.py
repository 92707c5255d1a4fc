"""Tables of a report: one row a method, mean and 95% interval over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..files.numbers import rounded_up
from ..runs.intervals import SHARES, share_interval
from .runs import Run, by_label

_NAMES = {"macro_f1": "macro-F1", "epsilon": "ε"}
_FIRST = ("accuracy", "macro_f1", "exact_match")


@dataclass(frozen=True)
class Table:
    """Text in rows and columns; the first column names the row, and those named in ``prose`` hold sentences."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    prose: tuple[str, ...] = ()


def metric_names(runs: Sequence[Run]) -> list[str]:
    """All metrics of the runs, the most telling first."""
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    return sorted(names, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))


def metric_title(name: str) -> str:
    """A metric's name as people write it."""
    return _NAMES.get(name, name.replace("_", " "))


def result_table(runs: Sequence[Run]) -> Table:
    """Last metrics and costs of every method."""
    groups, metrics = by_label(runs), metric_names(runs)
    head = ("method", *map(metric_title, metrics), "largest ε", "up / round", "down / round", "seconds", "seeds")
    rows = []
    for label, group in groups.items():
        values = [_metric_text(m, [run for run in group if m in run.metrics]) for m in metrics]
        done = min(run.completed for run in group)
        asked = group[0].config["federation"]["rounds"]
        name = label if all(run.is_finished for run in group) else f"{label} (only {done} of {asked} rounds)"
        rows.append(
            (
                name,
                *values,
                spent_text(group),
                _traffic_text(group, "bytes_up"),
                _traffic_text(group, "bytes_down"),
                _seconds_text(group),
                str(len(group)),
            )
        )
    return Table(
        f"After the last round{_said_of_intervals(runs)}. Traffic of all clients together; seconds of training."
        + _said_of_absent(runs),
        head,
        tuple(rows),
    )


def _metric_text(name: str, runs: Sequence[Run]) -> str:
    """A metric over seeds; of a single run, a share of rows with the interval that so few rows leave."""
    values = [run.metrics[name] for run in runs]
    if len(runs) == 1 and name in SHARES and runs[0].evaluated:
        return "{} ({:.3f} to {:.3f})".format(interval_text(values), *share_interval(values[0], runs[0].evaluated))
    return interval_text(values)


def _said_of_intervals(runs: Sequence[Run]) -> str:
    groups = by_label(runs).values()
    rows = {run.evaluated for run in runs if run.evaluated}
    splits = " or ".join(sorted({str(run.config["data"]["evaluate_on"]) for run in runs}))
    said = f", on {' or '.join(f'{n:,}' for n in sorted(rows))} rows of the {splits} split" if rows else ""
    if any(len(group) > 1 for group in groups):
        said += "; ± is the 95% interval of the mean over seeds (Student's t)"
    if rows and any(len(group) == 1 for group in groups):
        said += "; in brackets, the 95% interval of a share of so many rows (Wilson)"
    if any(run.config["privacy"].get("trials", 1) > 1 for run in runs):
        said += "; the run was chosen by these rows among several, so that it looks better on them than on others"
    return said


def _said_of_absent(runs: Sequence[Run]) -> str:
    damaged = [name for run in runs for name in run.unreadable]
    awaited = dict.fromkeys(name for run in runs for name in run.awaited)
    said = f" Left out, for it is damaged: {', '.join(damaged)}." if damaged else ""
    return said + (f" Not here, for no round is completed: {', '.join(awaited)}." if awaited else "")


def difference_table(runs: Sequence[Run]) -> Table | None:
    """The configuration keys in which the methods differ; None where there is one method."""
    flat = {label: flatten(group[0].config) for label, group in by_label(runs).items()}
    if len(flat) < 2:
        return None
    keys = dict.fromkeys(key for values in flat.values() for key in values if key not in ("seed", "methods"))
    differing = [key for key in keys if len({str(values.get(key)) for values in flat.values()}) > 1]
    rows = tuple((key, *(str(values.get(key)) for values in flat.values())) for key in differing)
    return Table(
        "All other settings are the same; the configuration is at the end of this page.", ("differs in", *flat), rows
    )


def table_text(runs: Sequence[Run]) -> str:
    """The result table for a terminal, with what its signs mean."""
    table = result_table(runs)
    return f"{plain_text(table)}\n{table.caption}"


def plain_text(table: Table) -> str:
    """A table for a terminal: columns in line, without the caption."""
    lines = [table.head, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.head))]
    return "\n".join(
        "  ".join(
            text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def largest_epsilon(runs: Sequence[Run]) -> float | None:
    """The largest ε of any client in any of the runs; None without privacy, and where clients do not report it."""
    spent = [run.epsilon for run in runs]
    return None if any(value is None for value in spent) else max(value for value in spent if value is not None)


def spent_text(runs: Sequence[Run]) -> str:
    """The largest ε of any client in any of the runs; that there is none, or that clients do not report it."""
    epsilon = largest_epsilon(runs)
    return "not reported" if epsilon is None and all(run.is_private for run in runs) else epsilon_text(epsilon)


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95% interval by Student's t; None for a single value, and where one is infinite
    or NaN.
    """
    if not all(map(math.isfinite, values)):
        return sum(values) / len(values), None
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    from scipy.stats import t

    return mean, float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def interval_text(values: Sequence[float]) -> str:
    """``0.712 ± 0.013``; a dash where there is no value."""
    if not values:
        return "–"
    mean, half = interval(values)
    return f"{mean:.3f}" if half is None else f"{mean:.3f} ± {half:.3f}"


def epsilon_text(value: float | None) -> str:
    """ε rounded up, or that there is none."""
    if value is None:
        return "not private"
    return "∞" if math.isinf(value) else f"{rounded_up(value, decimals=2):.2f}"


def _traffic_text(runs: Sequence[Run], key: str) -> str:
    """Mean bytes of a round; a dash where they are kept secret (they would tell who was drawn)."""
    sent = [row[key] for run in runs for row in run.rounds if key in row]
    return bytes_text(statistics.fmean(sent)) if sent else "–"


def _seconds_text(runs: Sequence[Run]) -> str:
    """Mean seconds of a run; a dash where they are kept secret, or cannot be read."""
    totals = [run.total("seconds") for run in runs]
    known = [total for total in totals if total is not None]
    return f"{statistics.fmean(known):.0f}" if len(known) == len(totals) else "–"


def bytes_text(count: float) -> str:
    """Bytes in decimal units: ``1.77 MB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys; ``methods`` stays as it is."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value and key != "methods":
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
