"""Chooses every method's values for every condition on the validation split: the best mean over three seeds, from grids
that grow until no best value is at an edge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .grid import Cell, Chosen, Grid, Place
from .protocol import Tried, wider
from .results import CellResult, best_of

#: How often a grid may grow; what is then at an edge is marked on the page.
MOST_WIDENINGS = 4


def choose_values(
    grid: Grid, run: Callable[[Sequence[Cell]], list[CellResult]]
) -> tuple[list[CellResult], dict[Place, Chosen]]:
    """Runs all combinations of what is tried, and more beyond a best value that is at an edge.

    A place with one combination is run where the pilot's variance is needed, and otherwise takes it unseen.

    Args:
        run: runs cells, or reads back those that are finished.

    Returns:
        the runs, and what was chosen.
    """
    tried = {place: grid.tried(place) for place in grid.tuned_places()}
    alone = {place for place, values in tried.items() if all(len(each) == 1 for each in values.values())}
    asked = [place for place in tried if grid.is_powered or place not in alone]
    chosen = {place: grid.tuning_cells(place)[0].chosen for place in tried if place not in asked}
    results: list[CellResult] = []
    for _ in range(MOST_WIDENINGS + 1):
        results = run([cell for place in asked for cell in grid.tuning_cells(place, tried[place])])
        for place in asked:
            own = [r for r in results if (r.cell.method, r.cell.condition) == place]
            chosen[place] = best_of(own, grid.study.metric)
        grown = {place: _grown(tried[place], chosen[place]) for place in asked}
        if all(grown[place] == tried[place] for place in asked):
            break
        tried |= grown
    return results, chosen


def edges(tried: Tried, chosen: Chosen) -> list[str]:
    """The keys whose chosen value is the largest or smallest of several that were tried."""
    return [key for key, value in chosen if len(tried[key]) > 1 and value in (min(tried[key]), max(tried[key]))]


def _grown(tried: Tried, chosen: Chosen) -> Tried:
    return {key: wider(tried[key], value) for key, value in chosen}
