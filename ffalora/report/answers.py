"""Language models before and after training: their metrics, and their answers side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .runs import Run, by_label, method_title
from .tables import Table, epsilon_text, interval_text, largest_epsilon, metric_names, metric_title

#: Answers that are shown, and characters of each.
_SHOWN, _LONGEST = 6, 400
_SMALL_IS_GOOD = "perplexity"


def before_and_after(runs: Sequence[Run]) -> Table | None:
    """Metrics of the untrained model and of every method; None where no untrained model was evaluated."""
    before = _before(runs)
    if not before:
        return None
    names = [name for name in metric_names(runs) if all(name in row["metrics"] for row in before)]
    rows = [(before[0]["name"], *(interval_text([row["metrics"][name] for row in before]) for name in names), "0")]
    for label, group in by_label(runs).items():
        values = (interval_text([run.metrics[name] for run in group if name in run.metrics]) for name in names)
        rows.append((label, *values, epsilon_text(largest_epsilon(group))))
    return Table("Before and after, on the same rows.", ("model", *map(metric_title, names), "ε"), tuple(rows))


def what_was_learned(runs: Sequence[Run]) -> list[str]:
    """A sentence for each method: how much better than the untrained model it foretells the answers of the data."""
    before = _before(runs)
    if not before:
        return []
    first, found = interval_text([row["metrics"][_SMALL_IS_GOOD] for row in before]), []
    for label, group in by_label(runs).items():
        values = [run.metrics[_SMALL_IS_GOOD] for run in group if _SMALL_IS_GOOD in run.metrics]
        if not values:
            continue
        better = max(values) < min(row["metrics"][_SMALL_IS_GOOD] for row in before)
        outcome = "below" if better else "NOT below"
        found.append(f"{label}: perplexity {interval_text(values)}, {outcome} the untrained model's {first}.")
    return found


def answers_table(runs: Sequence[Run]) -> Table | None:
    """What the untrained model and each method, of its first seed, answer to the same questions; None without any."""
    groups = {label: group[0] for label, group in by_label(runs).items() if group[0].answers}
    before = next((run.untrained for run in groups.values() if run.untrained), [])
    if not groups:
        return None
    columns = {"untrained": before} if before else {}
    columns |= {method_title(label): run.answers for label, run in groups.items()}
    first = next(iter(columns.values()))
    rows = []
    for number in _spread(len(first)):
        row, said = first[number], []
        for answers in columns.values():
            same = number < len(answers) and answers[number]["prompt"] == row["prompt"]
            said.append(_short(answers[number]["answer"]) if same else "–")
        rows.append((_short(row["prompt"]), *said, _short(row["reference"])))
    head = ("question", *columns, "answer of the data")
    return Table("Some of the questions that were evaluated, evenly chosen.", head, tuple(rows), prose=head)


def _before(runs: Sequence[Run]) -> list[Mapping[str, Any]]:
    """The untrained model's row, once for each seed."""
    found = {run.config["seed"]: row for run in runs for row in run.baselines if "metrics" in row}
    return list(found.values())


def _spread(count: int) -> list[int]:
    """At most ``_SHOWN`` places among ``count``."""
    return sorted({round(i * (count - 1) / max(1, min(_SHOWN, count) - 1)) for i in range(min(_SHOWN, count))})


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _LONGEST else text[: _LONGEST - 2].rstrip() + " …"
