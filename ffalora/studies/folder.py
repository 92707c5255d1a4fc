"""A study's folder read back: what was run and what came out, without running anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ..config import ConfigError
from ..runs.folder import ENVIRONMENT
from .grid import FEWEST_SEEDS, Grid
from .registration import registered_seeds
from .results import CELLS, MANIFEST, RESULTS, TUNING, CellResult, StudyResult, best_of, read_csv
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
    result.tuning = _rows(folder, TUNING, grid)
    result.results = _rows(folder, RESULTS, grid)
    for place in grid.tuned_places():
        own = [r for r in result.tuning if (r.cell.method, r.cell.condition) == place]
        if own:
            result.chosen[place] = best_of(own, grid.study.metric)
        elif not grid.is_powered:
            result.chosen[place] = grid.tuning_cells(place)[0].chosen
    return result


def environment_of(result: StudyResult) -> dict[str, Any]:
    """What the environments of all runs say whose folders are at hand, and what the study's own folder says, in one: a
    list of all values that occur where there are several.
    """
    own = [r.folder for r in [*result.results, *result.tuning]]
    shared = [result.folder.parent / CELLS / place.name for place in own]
    paths = dict.fromkeys(place / ENVIRONMENT for place in (result.folder, *own, *shared))
    return _together([json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()])


def values_in_words(value: Any) -> str:
    """A value of :func:`environment_of`, or those that occur."""
    return " or ".join(map(str, value)) if isinstance(value, list) else str(value)


def _together(found: Sequence[Any]) -> Any:
    if all(isinstance(each, Mapping) for each in found):
        keys = dict.fromkeys(key for each in found for key in each)
        return {key: _together([each[key] for each in found if key in each]) for key in keys}
    values = [value for each in found for value in (each if isinstance(each, list) else [each])]
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else distinct


def _read_grid(folder: Path) -> Grid:
    """The grid as the manifest defines it, whatever the package's own study of that name says today."""
    try:
        manifest = yaml.safe_load((folder / MANIFEST).read_text(encoding="utf-8"))
        study, name = Study.model_validate(manifest["definition"]), manifest["study"]
        at = study.scales[manifest["scale"]]
        part: GridSize = getattr(at, manifest["size"])
        conditions, methods = study.conditions_at(manifest["scale"]), part.methods or list(study.methods)
        is_powered = manifest["seeds"] == "by power"
        seeds = registered_seeds(folder) or (range(FEWEST_SEEDS) if is_powered else manifest["seeds"])
        return Grid(
            name=name,
            study=study,
            scale=manifest["scale"],
            size=manifest["size"],
            protocol=manifest["protocol"],
            base=manifest["base"],
            methods=methods,
            conditions={key: conditions[key] for key in part.conditions or conditions},
            first_tried=manifest["tried"],
            seeds=seeds,
            is_powered=is_powered,
        )
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{folder / MANIFEST} cannot be read: {error}; run the study again in another folder"
        ) from None


def _rows(folder: Path, table: str, grid: Grid) -> list[CellResult]:
    if not (folder / table).exists():
        return []
    found = read_csv(folder / table, grid.first_tried)
    return [replace(r, folder=folder / CELLS / grid.folder_name(r.cell)) for r in found]
