"""Compares two benchmark tables and flags what became slower.

    python benchmarks/compare.py BEFORE.csv AFTER.csv [--threshold 0.15]

Only rows of the same section, case, provider and device are compared, and only where the correctness gate was green. A
row counts as slower when its median grew by the threshold and its fast quantile exceeds the old slow one too (what
both runs scatter over is no change); the threshold lies below 20% so that a slow-down of 20% cannot slip through by a
percent of noise. Exit status: 0 nothing slower, 1 something slower, 2 the tables cannot be
compared.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from record import OK, Row, latest, read


class NotComparable(ValueError):
    """Two tables of which nothing honest can be said."""


@dataclass(frozen=True)
class Change:
    """One case in both tables; ``ratio`` is the new median over the old one, ``slower`` whether that is flagged."""

    before: Row
    after: Row
    ratio: float
    slower: bool


def compare(before: list[Row], after: list[Row], threshold: float = 0.15, provider: str = "ours") -> list[Change]:
    """Changes of every case that both tables timed, the slowest first.

    Args:
        before, after: rows; of equal keys the last counts.
        threshold: growth of the median that is flagged.
        provider: whose rows are compared: this one and its variants ('ours', 'ours, merged', …); '' for all.

    Raises:
        NotComparable: other devices, red or missing gate, or nothing in common.
    """
    old, new = ({k: r for k, r in latest(rows).items() if _timed(r, provider)} for rows in (before, after))
    shared = [key for key in old if key in new]
    if not shared:
        raise NotComparable("the two tables have no timed case in common")
    changes = []
    for key in shared:
        a, b = old[key], new[key]
        if a.device != b.device:
            raise NotComparable(
                f"{' / '.join(key)} ran on {a.device!r} before and on {b.device!r} after; compare one device"
            )
        for row, which in ((a, "before"), (b, "after")):
            if row.gate != "green":
                raise NotComparable(
                    f"{' / '.join(key)}: the correctness gate was {row.gate} {which} ({row.commit}); a time of a "
                    "wrong result is no time: run the gate and measure again"
                )
        ratio = b.ms / a.ms
        changes.append(Change(a, b, ratio, ratio >= 1.0 + threshold and b.ms_low > a.ms_high))
    return sorted(changes, key=lambda change: -change.ratio)


def _timed(row: Row, provider: str) -> bool:
    mine = row.provider == provider or row.provider.startswith(f"{provider},") or not provider
    return mine and row.status == OK and row.ms > 0


def main(arguments: list[str] | None = None) -> int:
    """Prints the changes; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="CSV of the old run")
    parser.add_argument("after", type=Path, help="CSV of the new run")
    parser.add_argument("--threshold", type=float, default=0.15, help="growth of the median that is flagged [0.15]")
    parser.add_argument("--provider", default="ours", help="whose rows; '' for all [ours and its variants]")
    options = parser.parse_args(arguments)
    try:
        changes = compare(read(options.before), read(options.after), options.threshold, options.provider)
    except ValueError as error:
        print(f"cannot compare: {error}", file=sys.stderr)
        return 2
    for change in changes:
        mark = "SLOWER" if change.slower else "      "
        old, new = change.before, change.after
        what = f"{old.section}: {old.case}: {old.provider}"
        print(f"{mark} {change.ratio:5.2f}x  {old.ms:10.3f} -> {new.ms:10.3f} ms  {what}")
    slower = sum(change.slower for change in changes)
    print(f"{len(changes)} cases compared, {slower} slower by {100 * options.threshold:.0f}% or more")
    return int(slower > 0)


if __name__ == "__main__":
    sys.exit(main())
