"""The table of methods, written from the classes: ``docs/strategies.md`` holds what :func:`table` returns."""

from __future__ import annotations

from . import STRATEGIES
from .base import Strategy

_HEADINGS = ("method", "trained", "sent up", "sent down", "aggregation", "exact", "ranks", "needs sums only", "privacy")
_TRAINED = {"b": "b", "a": "a", "both": "a, b", "core": "core"}


def table() -> str:
    """One row a method, as Markdown."""
    lines = [_HEADINGS, ("---",) * len(_HEADINGS), *map(_row, STRATEGIES.values())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _row(strategy: type[Strategy]) -> tuple[str, ...]:
    return (
        f"`{strategy.name}`",
        strategy.facts.trained or _TRAINED[strategy.trained],
        strategy.facts.up,
        strategy.facts.down,
        strategy.facts.aggregation,
        "yes" if strategy.exact else "no",
        "per client" if strategy.takes_ranks else "one",
        "yes" if strategy.linear else "no",
        strategy.facts.privacy,
    )
