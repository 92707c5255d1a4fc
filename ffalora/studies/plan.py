"""How many runs a study is, and how long they take."""

from __future__ import annotations

from .grid import TUNING_SEEDS, Grid


def planned_runs(grid: Grid) -> tuple[int, int]:
    """How many runs choose values before any grid grows, and how many are reported at least."""
    choosing = [len(grid.tuning_cells(place)) for place in grid.tuned_places()]
    alone = len(TUNING_SEEDS)
    return sum(n for n in choosing if grid.is_powered or n > alone), len(grid.places()) * len(grid.seeds)


def time_in_words(seconds: float) -> str:
    """``1.6 hours``; minutes below ninety of them, seconds below ninety."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


def plan_text(grid: Grid, seconds: dict[str, float]) -> str:
    """What a study will take, from the seconds of training that a run of each method has taken."""
    choosing, judging = planned_runs(grid)
    methods = [method for method, _ in grid.places()]
    total = choosing * sum(seconds[method] for method, _ in grid.tuned_places()) / len(grid.tuned_places())
    total += judging * sum(seconds[method] for method in methods) / len(methods)
    each = ", ".join(f"{method} {value:.0f} s" for method, value in seconds.items())
    return (
        f"{grid.name}: {choosing} runs to choose values (more where grids grow) and {judging} or more to report, of "
        f"{each} each: about {time_in_words(total)} of training"
    )
