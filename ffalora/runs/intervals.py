"""How sure a share of rows is: what other rows of the same kind would give."""

from __future__ import annotations

#: Metrics that are a count of rows over their number.
SHARES = ("accuracy", "exact_match")


def share_interval(share: float, rows: int) -> tuple[float, float]:
    """The 95% interval (Wilson 1927) of a share of so many rows, at least one."""
    from scipy.stats import binomtest

    found = binomtest(round(share * rows), rows).proportion_ci(confidence_level=0.95, method="wilson")
    return float(found.low), float(found.high)
