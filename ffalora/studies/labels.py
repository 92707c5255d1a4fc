"""How a study's conditions, values and numbers are written in tables and on plots."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..report.tables import bytes_text, epsilon_text, interval, metric_title
from .grid import Grid
from .study import Condition

_LONGEST = 30
_KEYS = {"optimizer.lr": "learning rate", "privacy.max_grad_norm": "clipping norm"}
#: What a run costs, in the order in which tables give it.
COSTS = {
    "bytes_up_per_client_round": "up, a client and round",
    "bytes_up": "up, all rounds",
    "bytes_down": "down, all rounds",
    "trained_numbers": "trained numbers",
    "seconds_per_round": "time a round",
    "seconds": "time in all",
    "flops_per_sample": "flops a sample",
    "saved_bytes": "kept for backward",
    "step_bytes": "memory of a step",
    "epsilon": "largest ε",
}
#: Of these the ones that are counted, and so the same for every seed.
COUNTED = frozenset(name for name in COSTS if "seconds" not in name and name != "epsilon")


def condition_label(name: str, condition: Condition) -> str:
    """What a condition is called where there is little room: its words up to a colon; its name where they are long."""
    words = condition.says.partition(":")[0]
    return words if 0 < len(words) <= _LONGEST else name


def condition_labels(grid: Grid) -> dict[str, str]:
    """Labels of the conditions that are run, by name; names where two would read the same."""
    labels = {name: condition_label(name, condition) for name, condition in grid.conditions.items()}
    return labels if len(set(labels.values())) == len(labels) else {name: name for name in labels}


def conditions_in_words(grid: Grid) -> str:
    """What the labels stand for, where they say less than the study does; empty where nothing is left to say."""
    said = [
        grid.conditions[name].says if grid.conditions[name].says.startswith(label) else f"{label}: {words}"
        for name, label in condition_labels(grid).items()
        if (words := grid.conditions[name].says) and words != label
    ]
    return "; ".join(said)


def number_title(name: str) -> str:
    """A number's name as people write it."""
    return COSTS.get(name, metric_title(name))


def number_text(name: str, value: float, beside: float | None = None) -> str:
    """A number with its unit: where it has none of its own, that of ``beside`` if given."""
    if name == "epsilon":
        return epsilon_text(value)
    if "bytes" in name:
        return bytes_text(value)
    if "seconds" in name:
        return f"{value:.3g} s"
    whole = abs(value if beside is None else beside)
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if whole >= 10 * size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.3f}" if whole < 100 else f"{value:,.0f}"


def spread_text(name: str, values: Sequence[float]) -> str:
    """Mean ± half the 95% interval; the mean alone where there is one value or all are equal; a dash without values."""
    if not values:
        return "–"
    mean, half = interval(values)
    if half and "seconds" in name:
        digits = max(0, min(3, 1 - math.floor(math.log10(half))))
        return f"{mean:.{digits}f} ± {half:.{digits}f} s"
    return f"{number_text(name, mean)} ± {number_text(name, half, mean)}" if half else number_text(name, mean)


def key_title(key: str) -> str:
    """A configuration key as people write it."""
    return _KEYS.get(key, key)


def values_text(values: Sequence[tuple[str, float]]) -> str:
    """Chosen values in a few characters: the number alone for a learning rate, else with the key's last part."""
    if len(values) == 1 and values[0][0] == "optimizer.lr":
        return f"{values[0][1]:g}"
    return ", ".join(f"{key_title(key)} {value:g}" for key, value in values)


def capital(text: str) -> str:
    """The text with its first letter large."""
    return text[:1].upper() + text[1:]
