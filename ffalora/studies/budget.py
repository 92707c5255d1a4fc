"""``--budget``: a study that stops before a group of runs that would not fit into the time that is left."""

from __future__ import annotations

import math
import time


class BudgetSpent(Exception):
    """The next runs would not fit. Says which, and what they would have taken."""


class Budget:
    """Wall seconds for one invocation, and what a run of each method has taken in it.

    The rule: runs that choose values are begun group by group, verdict runs seed by seed, and only where the mean
    seconds of a run so far, times their number, fit into what is left. A method that has not been run yet is taken to
    fit. No result of any run enters.
    """

    def __init__(self, seconds: float = math.inf):
        self._ends = time.monotonic() + seconds
        self._taken: dict[str, tuple[float, int]] = {}

    def check(self, methods: list[str]) -> None:
        """Raises :class:`BudgetSpent` where one run of each of ``methods`` (with repeats) does not fit any more; none
        always fits.
        """
        needed, left = self.seconds_of(methods), self._ends - time.monotonic()
        if methods and (needed > left or left <= 0):
            raise BudgetSpent(
                f"--budget: the next {len(methods)} runs take about {needed:.0f} s, and {max(left, 0):.0f} s are left"
            )

    def record(self, methods: list[str], seconds: float) -> None:
        """Notes what runs took together."""
        for method in methods:
            before, runs = self._taken.get(method, (0.0, 0))
            self._taken[method] = (before + seconds / len(methods), runs + 1)

    def seconds_of(self, methods: list[str]) -> float:
        """What one run of each of ``methods`` (with repeats) would take; 0 for those that nothing is known of."""
        known = {method: total / runs for method, (total, runs) in self._taken.items()}
        return sum(known.get(method, 0.0) for method in methods)
