"""Runs a study cell by cell: values are chosen on the validation split, then every seed is run and its results kept.

A cell is a run folder of ``ffalora simulate``. What is finished is never run again, and what was interrupted goes on
after its last completed round. Cells that differ in nothing but values of a client's row (learning rate, clipping norm,
noise) train together, where the method allows it; not where a study counts costs, for their time is shared.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from ..config import ConfigError
from ..federated.together import shared_setting, simulate_together
from ..files.atomic import write_atomically
from ..files.numbers import restored, rows_to_csv, to_json
from ..runs.folder import SUMMARY
from .claims import Values, Verdict, judge
from .costs import step_costs
from .grid import Cell, Chosen, Grid

MANIFEST, TUNING, RESULTS, COUNTS = "study.yaml", "tuning.csv", "results.csv", "costs.json"
_COSTS = ("bytes_up_per_client_round", "bytes_up", "bytes_down", "trained_numbers", "seconds_per_round", "seconds")


@dataclass(frozen=True)
class CellResult:
    """A finished cell: its last metrics, ε and costs by name, and its folder below the study's."""

    cell: Cell
    numbers: Mapping[str, float]
    folder: Path


@dataclass
class StudyResult:
    """A finished study.

    Attributes:
        tuning: the runs among which values were chosen; results: those that are reported.
        chosen: by (method, condition).
        verdicts: one a claim.
    """

    grid: Grid
    folder: Path
    tuning: list[CellResult] = field(default_factory=list)
    results: list[CellResult] = field(default_factory=list)
    chosen: dict[tuple[str, str], Chosen] = field(default_factory=dict)

    @property
    def verdicts(self) -> list[Verdict]:
        return [judge(claim, self.values(claim.metric)) for claim in self.grid.study.claims]

    def values(self, metric: str | None = None) -> Values:
        """The metric (default: the study's) of every reported cell that has it."""
        name = metric or self.grid.study.metric
        found = {(r.cell.method, r.cell.condition, r.cell.seed): r.numbers.get(name, math.nan) for r in self.results}
        return {key: value for key, value in found.items() if not math.isnan(value)}


def run_study(grid: Grid, folder: Path, resume: bool = False, progress: bool = True) -> StudyResult:
    """Runs what is not finished yet and writes ``tuning.csv`` and ``results.csv``.

    Args:
        grid: the part of a study to run.
        folder: made if missing; with ``resume`` it may hold an unfinished study of the same configuration.
        progress: show a bar over rounds with the time left.

    Raises:
        ConfigError: a cell's configuration does not fit (before anything is run), or the folder holds another study.
    """
    tuned = [(method, condition) for condition in grid.tuned_conditions() for method in grid.methods]
    tuning = {key: grid.tuning_cells(*key) for key in tuned}
    first = {key: cells[0].chosen for key, cells in tuning.items()}
    for cell in [*(cell for cells in tuning.values() for cell in cells), *grid.verdict_cells(first)]:
        grid.config(cell)
    _claim_folder(grid, folder, resume)
    result = StudyResult(grid, folder)
    choosing = [cell for cells in tuning.values() if len(cells) > 1 for cell in cells]
    total = sum(grid.config(cell).federation.rounds for cell in [*choosing, *grid.verdict_cells(first)])
    with tqdm(total=total, desc=f"{grid.name} ({grid.scale}, {grid.size})", unit="round", disable=not progress) as bar:
        for key, cells in tuning.items():
            if len(cells) > 1:
                result.tuning += _run_cells(grid, cells, folder / "tuning", bar)
                write_atomically(folder / TUNING, to_csv(result.tuning).encode())
            result.chosen[key] = _best(cells, result.tuning, grid.study.metric)
        result.results = _run_cells(grid, grid.verdict_cells(result.chosen), folder / "runs", bar, folder / RESULTS)
    return result


def to_csv(results: Sequence[CellResult]) -> str:
    """One row a cell: its place in the grid, what was chosen, and every number."""
    rows = [
        {"condition": r.cell.condition, "method": r.cell.method, "seed": r.cell.seed}
        | dict(r.cell.chosen)
        | dict(r.numbers)
        for r in results
    ]
    return rows_to_csv(rows)


def read_csv(path: Path, tried: Mapping[str, Mapping[str, Any]]) -> list[CellResult]:
    """The cells of a file that :func:`to_csv` wrote; ``tried`` says by method which columns were chosen."""
    found = []
    for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))):
        method, condition, seed = row.pop("method"), row.pop("condition"), int(row.pop("seed"))
        keys = dict.fromkeys(key for keys in tried.values() for key in keys)
        chosen = tuple((key, float(row[key])) for key in tried[method] if row.get(key))
        numbers = {key: float(value) for key, value in row.items() if key not in keys and value != ""}
        found.append(CellResult(Cell(method, condition, seed, chosen), numbers, path.parent))
    return found


def _run_cells(
    grid: Grid, cells: Sequence[Cell], folder: Path, bar: tqdm, table: Path | None = None
) -> list[CellResult]:
    """Runs what is missing of the cells, those together that can be; ``table`` holds at any time what is finished."""
    found = {cell: _finished(grid, cell, folder) for cell in cells if (folder / cell.place / SUMMARY).exists()}
    bar.update(sum(grid.config(cell).federation.rounds for cell in found))
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell not in found:
            shared = None if grid.study.counts_costs else shared_setting(grid.config(cell))
            groups.setdefault(shared or cell.place, []).append(cell)
    for group in groups.values():
        first, others = group[0], f" and {len(group) - 1} more" if group[1:] else ""
        bar.set_postfix_str(f"{first.method}, {first.condition}, seed {first.seed}{others}")
        configs, before = {folder / cell.place: grid.config(cell) for cell in group}, bar.n
        simulate_together(configs, True, bar.update)
        rounds = sum(config.federation.rounds for config in configs.values())
        bar.update(before + rounds - bar.n)  # those that a spent budget left out
        found |= {cell: _finished(grid, cell, folder) for cell in group}
        if table is not None:
            write_atomically(table, to_csv([found[cell] for cell in cells if cell in found]).encode())
    return [found[cell] for cell in cells]


def _finished(grid: Grid, cell: Cell, folder: Path) -> CellResult:
    """The numbers of a cell that was run, from its summary."""
    place = folder / cell.place
    summary = restored(json.loads((place / SUMMARY).read_text(encoding="utf-8")))
    numbers = dict(summary["metrics"]) | {name: summary[name] for name in _COSTS if name in summary}
    if summary["epsilon"] is not None:
        numbers["epsilon"] = summary["epsilon"]
    if grid.study.counts_costs:
        numbers |= _counted(grid, cell, place / COUNTS)
    return CellResult(cell, numbers, place)


def _counted(grid: Grid, cell: Cell, path: Path) -> dict[str, float]:
    """Costs of a local step, counted once and kept beside the run."""
    if not path.exists():
        write_atomically(path, to_json(step_costs(grid.config(cell)), indent=2).encode())
    return restored(json.loads(path.read_text(encoding="utf-8")))


def _best(cells: Sequence[Cell], results: Sequence[CellResult], metric: str) -> Chosen:
    """What the run with the best metric used; of equals the one with the lower loss."""
    if len(cells) == 1:
        return cells[0].chosen
    among = [r for r in results if r.cell in cells]
    return max(among, key=lambda r: (r.numbers.get(metric, -math.inf), -r.numbers.get("loss", math.inf))).cell.chosen


def _claim_folder(grid: Grid, folder: Path, resume: bool) -> None:
    """Writes what the folder is for; refuses one that holds something else."""
    manifest = {
        "study": grid.name,
        "scale": grid.scale,
        "size": grid.size,
        "seeds": len(grid.seeds),
        "base": dict(grid.base),
        "definition": grid.study.model_dump(mode="json"),
    }
    path = folder / MANIFEST
    if path.exists():
        if not resume:
            raise ConfigError(
                f"--output {folder} holds a study already; give --resume to continue it, or another folder"
            )
        if yaml.safe_load(path.read_text(encoding="utf-8")) != manifest:
            raise ConfigError(
                f"--resume: {folder} holds a study with another definition or configuration; leave the changes out "
                "to go on, or give another folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True).encode())
