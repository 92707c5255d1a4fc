"""Runs a study: values are chosen on the validation split, what will be compared is registered, then every seed is run.

A cell is a run folder of ``ffalora simulate``. What is finished is never run again, by whatever study that finds its
folder; where only a row in a table is left, by the study whose table that is. What was interrupted goes on after its
last completed round. Cells that differ in nothing but values of a client's row (learning rate, clipping norm, noise)
train together, where the method allows it; not where a study counts costs, for their time is shared.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml
from tqdm import tqdm

from ..config import ConfigError
from ..federated.together import shared_setting, simulate_together
from ..files.atomic import write_atomically
from ..files.numbers import restored, to_json
from ..runs.folder import SUMMARY
from .budget import Budget, BudgetSpent
from .costs import step_costs
from .folder import read_study
from .grid import Cell, Grid, changed_keys, setting
from .plan import plan_text
from .power import claims_power, planned_seeds
from .registration import register
from .results import CELLS, MANIFEST, RESULTS, TUNING, CellResult, StudyResult, to_csv
from .tuning import choose_values

COUNTS = "costs.json"
_COSTS = ("bytes_up_per_client_round", "bytes_up", "bytes_down", "trained_numbers", "seconds_per_round", "seconds")


def run_study(
    grid: Grid,
    folder: Path,
    resume: bool = False,
    progress: bool = True,
    cells: Path | None = None,
    budget: Budget | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> StudyResult:
    """Runs what is not finished yet and writes ``tuning.csv``, ``registration.yaml`` and ``results.csv``.

    Args:
        grid: the part of a study to run.
        folder: made if missing; with ``resume`` it may hold an unfinished study of the same configuration.
        progress: show a bar over runs.
        cells: where run folders lie, such as those of other studies with which cells are shared; a folder of
            ``folder``'s where None.
        budget: of wall time; what is finished when it is spent is written and returned.
        say: told what the study will take, once a run of each method has been timed.

    Raises:
        ConfigError: a cell's configuration does not fit (before anything is run), or the folder holds another study.
    """
    for cell in [*(c for place in grid.tuned_places() for c in grid.tuning_cells(place)), *_first_verdict(grid)]:
        grid.config(cell)
    _claim_folder(grid, folder, resume)
    before, result = read_study(folder), StudyResult(grid, folder)
    known = {r.cell: r for r in [*before.tuning, *before.results]}
    with tqdm(desc=f"{grid.name} ({grid.protocol}, {grid.size})", unit="run", disable=not progress) as bar:
        cell_runner = _Cells(grid, cells or folder / CELLS, budget or Budget(), bar, known)
        try:
            _choose(result, cell_runner, say)
            _verdicts(result, cell_runner)
        except BudgetSpent as spent:
            result.stopped = str(spent)
    return result


def _choose(result: StudyResult, runner: _Cells, say: Callable[[str], object]) -> None:
    """The runs on the validation split, and what follows from them: values, and how many seeds."""
    grid = result.grid

    def keep(done: list[CellResult]) -> None:
        result.tuning = done
        if done:
            write_atomically(result.folder / TUNING, to_csv(done).encode())

    def run(cells: Sequence[Cell]) -> list[CellResult]:
        return runner.run(cells, keep)

    asked = [grid.tuning_cells(place)[0] for place in grid.tuned_places() if grid.is_powered]
    first = list({cell.method: cell for cell in reversed(asked)}.values())[::-1]
    if first:
        seconds = {r.cell.method: r.numbers.get("seconds", 0.0) for r in runner.run(first, lambda done: None)}
        say(plan_text(grid, seconds))
    result.tuning, result.chosen = choose_values(grid, run)
    needs = claims_power(grid.study.claims, result.pilot(), grid.places()) if grid.is_powered else []
    if needs:
        result.grid = runner.grid = replace(grid, seeds=range(planned_seeds(needs)))
    asked = result.grid.verdict_cells(result.chosen)
    register(result, needs, len(asked) - len(runner.missing(asked)))


def _verdicts(result: StudyResult, runner: _Cells) -> None:
    """The runs that are reported, seed by seed."""
    cells = result.grid.verdict_cells(result.chosen)
    found: dict[Cell, CellResult] = {}

    def keep(done: Sequence[CellResult]) -> None:
        found.update({r.cell: r for r in done})
        result.results = [found[cell] for cell in cells if cell in found]
        write_atomically(result.folder / RESULTS, to_csv(result.results).encode())

    keep(runner.finished(cells))
    for seed in result.grid.seeds:
        block = runner.missing([cell for cell in cells if cell.seed == seed])
        runner.budget.check([cell.method for cell in block])
        runner.run(block, keep)


@dataclass
class _Cells:
    """Runs cells, or reads them back; those with one configuration are one run.

    Attributes:
        folder: of all run folders; bar: counts runs.
        known: rows of the study's tables, for cells whose run folders are not at hand.
    """

    grid: Grid
    folder: Path
    budget: Budget
    bar: tqdm
    known: Mapping[Cell, CellResult]
    _places: dict[Cell, Path] = field(default_factory=dict)

    def missing(self, cells: Sequence[Cell]) -> list[Cell]:
        """Those that are not finished."""
        return [cell for cell in cells if cell not in self.known and not (self._place(cell) / SUMMARY).exists()]

    def finished(self, cells: Sequence[Cell]) -> list[CellResult]:
        """Those that are, read back."""
        missing = set(self.missing(cells))
        return [self._finished(cell) for cell in cells if cell not in missing]

    def run(self, cells: Sequence[Cell], keep: Callable[[list[CellResult]], object]) -> list[CellResult]:
        """Runs what is missing, those together that can be; ``keep`` gets what is finished after each group.

        Raises:
            BudgetSpent: a group would not fit.
        """
        found = {r.cell: r for r in self.finished(cells)}
        missing = set(cells) - found.keys()
        groups: dict[str, dict[Path, Cell]] = {}
        for cell in cells:
            if cell in missing:
                shared = None if self.grid.study.counts_costs else shared_setting(self.grid.config(cell))
                place = self._place(cell)
                groups.setdefault(shared or place.name, {})[place] = cell
        keep(list(found.values()))
        for group in groups.values():
            self._train(group)
            done = {self._place(cell): cell for cell in group.values()}
            found |= {cell: self._finished(cell) for cell in missing if self._place(cell) in done}
            keep([found[cell] for cell in cells if cell in found])
        return [found[cell] for cell in cells]

    def _train(self, group: dict[Path, Cell]) -> None:
        """One group, timed."""
        first, methods = next(iter(group.values())), [cell.method for cell in group.values()]
        others = f" and {len(group) - 1} more" if len(group) > 1 else ""
        self.bar.set_postfix_str(f"{first.method}, {first.condition}, seed {first.seed}{others}")
        self.budget.check(methods)
        started = time.monotonic()
        simulate_together({place: self.grid.config(cell) for place, cell in group.items()}, True)
        self.budget.record(methods, time.monotonic() - started)
        self.bar.update(len(group))

    def _place(self, cell: Cell) -> Path:
        if cell not in self._places:
            self._places[cell] = self.folder / self.grid.folder_name(cell)
        return self._places[cell]

    def _finished(self, cell: Cell) -> CellResult:
        """The numbers of a cell that was run, from its summary."""
        place = self._place(cell)
        if cell in self.known and not (place / SUMMARY).exists():
            return self.known[cell]
        try:
            summary = restored(json.loads((place / SUMMARY).read_text(encoding="utf-8")))
            numbers = dict(summary["metrics"]) | {name: summary[name] for name in _COSTS if name in summary}
            if summary["epsilon"] is not None:
                numbers["epsilon"] = summary["epsilon"]
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{place / SUMMARY} is damaged ({type(error).__name__}: {error}); remove the folder {place}, and "
                "--resume runs it again"
            ) from None
        if self.grid.study.counts_costs:
            numbers |= self._counted(cell, place / COUNTS)
        return CellResult(cell, numbers, place)

    def _counted(self, cell: Cell, path: Path) -> dict[str, float]:
        """Costs of a local step, counted once and kept beside the run."""
        if not path.exists():
            write_atomically(path, to_json(step_costs(self.grid.config(cell)), indent=2).encode())
        return restored(json.loads(path.read_text(encoding="utf-8")))


def _first_verdict(grid: Grid) -> list[Cell]:
    """The verdict runs of one seed, with the first of what is tried."""
    return replace(grid, seeds=grid.seeds[:1]).verdict_cells(grid.first_chosen())


def _claim_folder(grid: Grid, folder: Path, resume: bool) -> None:
    """Writes what the folder is for; refuses one that holds something else."""
    manifest = {
        "study": grid.name,
        "scale": grid.scale,
        "size": grid.size,
        "protocol": grid.protocol,
        "seeds": "by power" if grid.is_powered else list(grid.seeds),
        "base": dict(grid.base),
        "tried": {method: dict(tried) for method, tried in grid.first_tried.items()},
        "definition": grid.study.model_dump(mode="json"),
        "setting": setting(grid),
    }
    path = folder / MANIFEST
    if path.exists():
        if not resume:
            raise ConfigError(
                f"--output {folder} holds a study already; give --resume to continue it, or another folder"
            )
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(before, dict) or not isinstance(before.get("setting"), dict):
            raise ConfigError(f"--resume: {path} cannot be read; give another folder")
        changed = changed_keys(before["setting"], grid)
        if changed or before | {"setting": None} != manifest | {"setting": None}:
            keys = f" ({', '.join(changed)})" if changed else ""
            raise ConfigError(
                f"--resume: {folder} holds a study with another definition or configuration{keys}; leave the changes "
                "out to go on, or give another folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True).encode())
