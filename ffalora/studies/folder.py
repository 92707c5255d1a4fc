"""A study's folder read back: what was run and what came out, without running anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml

from ..config import ConfigError
from .grid import Grid
from .runner import MANIFEST, RESULTS, TUNING, CellResult, StudyResult, _best, read_csv
from .study import GridSize, Study


def read_study(folder: Path) -> StudyResult:
    """The finished cells of a study, from its manifest and its two tables.

    Run folders need not be there; where they are, the cells know theirs.

    Raises:
        ConfigError: ``folder`` holds no study, or none that this version can read.
    """
    if not (folder / MANIFEST).exists():
        raise ConfigError(f"{folder} holds no study (no {MANIFEST}); give the folder of ffalora study --output")
    grid = _read_grid(folder)
    result = StudyResult(grid, folder)
    result.tuning = _cells(folder, TUNING, "tuning", grid)
    result.results = _cells(folder, RESULTS, "runs", grid)
    for condition in grid.tuned_conditions():
        for method in grid.methods:
            cells = grid.tuning_cells(method, condition)
            if len(cells) == 1 or any(r.cell in cells for r in result.tuning):
                result.chosen[method, condition] = _best(cells, result.tuning, grid.study.metric)
    return result


def _read_grid(folder: Path) -> Grid:
    """The grid as the manifest defines it, whatever the package's own study of that name says today."""
    try:
        manifest = yaml.safe_load((folder / MANIFEST).read_text(encoding="utf-8"))
        study, name = Study.model_validate(manifest["definition"]), manifest["study"]
        at = study.scales[manifest["scale"]]
        part: GridSize = getattr(at, manifest["size"])
        conditions = study.conditions_at(manifest["scale"])
        return Grid(
            name=name,
            study=study,
            scale=manifest["scale"],
            size=manifest["size"],
            base=manifest["base"],
            methods=part.methods or list(study.methods),
            conditions={key: conditions[key] for key in part.conditions or conditions},
            tried=at.tried | part.tried,
            seeds=range(manifest["seeds"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{folder / MANIFEST} cannot be read: {error}; run the study again in another folder"
        ) from None


def _cells(folder: Path, table: str, runs: str, grid: Grid) -> list[CellResult]:
    if not (folder / table).exists():
        return []
    found = read_csv(folder / table, grid.tried)
    return [replace(r, folder=folder / runs / r.cell.place) for r in found]
