"""Language models before and after training, with answers side by side; regressions beside the best constant."""

from __future__ import annotations

from collections.abc import Sequence

from .baselines import baselines_of
from .runs import Run, by_label, method_title
from .tables import Table, interval_text, metric_names, metric_title, spent_text

#: Answers that are shown, and characters of each.
_SHOWN, _LONGEST = 6, 400
_RIGHT = "exact_match"
#: Names of their baselines, and what those have.
_UNTRAINED, _COMMONEST, _CONSTANT, _METRICS = "untrained", "commonest answer", "best constant", "metrics"
#: Metrics of which less is better, the baseline that has them, and what sentences call it.
_LESS_IS_BETTER = (("perplexity", _UNTRAINED, "the untrained model's"), ("mse", _CONSTANT, "the best constant's"))


def before_and_after(runs: Sequence[Run]) -> Table | None:
    """Metrics of the untrained model, of the commonest answer or the best constant, and of every method; None where no
    such baseline was evaluated.
    """
    before = baselines_of(runs, _METRICS)
    first = [row[_METRICS] for baseline in before if baseline.name in (_UNTRAINED, _CONSTANT) for row in baseline.rows]
    if not first:
        return None
    names = [name for name in metric_names(runs) if all(name in found for found in first)]
    rows = []
    for _, title, found in before:
        known = ([row[_METRICS][name] for row in found if name in row[_METRICS]] for name in names)
        rows.append((title, *(interval_text(values) if values else "–" for values in known), "0"))
    for label, group in by_label(runs).items():
        values = (interval_text([run.metrics[name] for run in group if name in run.metrics]) for name in names)
        rows.append((label, *values, spent_text(group)))
    is_trained_on = any(baseline.name == _UNTRAINED for baseline in before)
    caption = f"{'Before and after' if is_trained_on else 'Beside the best constant'}, on the same rows."
    return Table(caption, ("model", *map(metric_title, names), "ε"), tuple(rows))


def what_was_learned(runs: Sequence[Run]) -> list[str]:
    """A sentence for each method: how much better than the untrained model it foretells the answers of the data, or
    numbers than the best constant, and, where answers are a choice of few, how often it is right beside the commonest
    of them.
    """
    found = []
    for label, group in by_label(runs).items():
        before = {baseline.name: [row[_METRICS] for row in baseline.rows] for baseline in baselines_of(group, _METRICS)}
        said = [_beside(group, metric, before.get(name, []), owner) for metric, name, owner in _LESS_IS_BETTER]
        if not any(said):
            continue
        commonest = [metrics[_RIGHT] for metrics in before.get(_COMMONEST, []) if _RIGHT in metrics]
        right = [run.metrics[_RIGHT] for run in group if _RIGHT in run.metrics]
        if commonest and right:
            outcome = "above" if min(right) > max(commonest) else "NOT above"
            commonest_text = interval_text(commonest)
            said.append(f"right answers {interval_text(right)}, {outcome} the commonest one's {commonest_text}")
        found.append(f"{label}: {'; '.join(filter(None, said))}.")
    return found


def _beside(group: Sequence[Run], metric: str, baseline: Sequence[dict[str, float]], owner: str) -> str:
    """What the runs reached of a metric of which less is better, beside a baseline; empty where either has none."""
    values, known = ([each[metric] for each in of if metric in each] for of in ([r.metrics for r in group], baseline))
    if not values or not known:
        return ""
    outcome = "below" if all(value < min(known) for value in values) else "NOT below"
    return f"{metric} {interval_text(values)}, {outcome} {owner} {interval_text(known)}"


def answers_table(runs: Sequence[Run]) -> Table | None:
    """What the untrained model and each method, of its first seed, answer to the same questions; None without any."""
    groups = {label: group[0] for label, group in by_label(runs).items() if group[0].answers}
    if not groups:
        return None
    before = {label: run.untrained for label, run in groups.items() if run.untrained}
    is_shared = all(answers == next(iter(before.values())) for answers in before.values())
    columns = {"untrained" if is_shared else f"untrained (of {label})": answers for label, answers in before.items()}
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


def _spread(count: int) -> list[int]:
    """At most ``_SHOWN`` places among ``count``."""
    return sorted({round(i * (count - 1) / max(1, min(_SHOWN, count) - 1)) for i in range(min(_SHOWN, count))})


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _LONGEST else text[: _LONGEST - 2].rstrip() + " …"
