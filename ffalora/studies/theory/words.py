"""Numbers over seeds as text: mean and 95% interval by Student's t, on the scale that suits them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...report.tables import interval


def text(values: Sequence[float], unit: str = "") -> str:
    """``0.712 ± 0.013``, three significant digits; values that are not finite are left out and counted."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "–"
    mean, half = interval(finite)
    said = f"{_short(mean, 3)}{unit}" if half is None else f"{_short(mean, 3)} ± {_short(half, 2)}{unit}"
    return said if len(finite) == len(values) else f"{said} ({len(values) - len(finite)} not finite)"


def percent(values: Sequence[float]) -> str:
    """As :func:`text`, for shares."""
    return text([100 * value for value in values], "%")


def multiple(values: Sequence[float]) -> str:
    """``2.31 (1.8 to 2.9)``: geometric mean of positive numbers, and its interval, which is symmetric in the logarithm;
    values that have none are left out and counted.
    """
    logs = [math.log(value) for value in values if value > 0 and math.isfinite(value)]
    if not logs:
        return "–"
    mean, half = interval(logs)
    said = _short(math.exp(mean), 3)
    if half is not None and half >= 5e-4:
        said += f" ({_short(math.exp(mean - half), 2)} to {_short(math.exp(mean + half), 2)})"
    return said if len(logs) == len(values) else f"{said} ({len(values) - len(logs)} without a logarithm)"


def span(values: Sequence[float]) -> str:
    """``1.04 to 1.49``: the smallest and the largest."""
    return f"{_short(min(values), 3)} to {_short(max(values), 3)}" if values else "–"


def compared(what: str, one: str, ones: Sequence[float], other: str, others: Sequence[float]) -> str:
    """Whether ``one``'s positive numbers are larger than ``other``'s, seed by seed, by the ratio's 95% interval."""
    ratios = [a / b for a, b in zip(ones, others, strict=True)]
    logs = [math.log(ratio) for ratio in ratios if ratio > 0 and math.isfinite(ratio)]
    if not logs:
        return f"{what} of {one} and {other} cannot be compared"
    mean, half = interval(logs)
    if half is None:
        return f"with one seed {one}'s {what} is {math.exp(mean):.3g} times {other}'s, without an interval"
    said = f"{one}'s {what} is {multiple(ratios)} times {other}'s, seed by seed"
    return f"{said}: {'larger' if mean > half else 'smaller' if mean < -half else 'undecided'}"


def _short(value: float, digits: int) -> str:
    """With so many significant digits; without an exponent below 10,000."""
    said = f"{value:.{digits}g}"
    return f"{float(said):.0f}" if "e+" in said and abs(float(said)) < 1e4 else said
