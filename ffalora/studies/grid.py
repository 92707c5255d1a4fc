"""The cells of a study: every method in every condition with every seed, as configurations.

Cells are ordinary configurations of :mod:`ffalora.config`: everything that a study runs, ``ffalora simulate`` can run
alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import product
from typing import Any

import yaml

from ..config import Config, ConfigError, from_mapping
from ..config.values import merge
from .study import Condition, GridSize, Scale, Size, Study, load_study

#: Chosen values by dotted key, as pairs: hashable.
Chosen = tuple[tuple[str, float], ...]
#: Seed of the runs that choose learning rates and the like; verdicts use the seeds from 0 upwards.
TUNING_SEED = 1000


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        method, condition, seed: its place in the grid.
        chosen: values of the keys that are tried, before the condition's factors.
    """

    method: str
    condition: str
    seed: int
    chosen: Chosen

    @property
    def place(self) -> str:
        """Its folder below the study's."""
        values = ",".join(f"{key.rpartition('.')[2]}={value:g}" for key, value in self.chosen)
        return f"{self.condition}/{self.method}/{values}/seed-{self.seed}"


@dataclass(frozen=True)
class Grid:
    """The part of a study that one invocation runs.

    Attributes:
        name: of the study's file.
        study: the question; scale, size: which part.
        base: nested values that all cells share.
        methods, conditions: those that are run.
        tried: by method, the values to choose from.
        seeds: of the verdict runs.
    """

    name: str
    study: Study
    scale: Scale
    size: Size
    base: Mapping[str, Any]
    methods: Sequence[str]
    conditions: Mapping[str, Condition]
    tried: Mapping[str, Mapping[str, Sequence[float]]]
    seeds: Sequence[int]

    def tuned_conditions(self) -> list[str]:
        """Conditions for which values are chosen: for their own runs, or for those of others."""
        return list(dict.fromkeys(c.like or name for name, c in self.conditions.items()))

    def tuning_cells(self, method: str, condition: str) -> list[Cell]:
        """The runs among which a method's values are chosen for a condition: every combination of what is tried.

        Keys of ``privacy`` are not tried where nothing is private: they would change nothing.
        """
        tried = dict(self.tried[method])
        if self.config(Cell(method, condition, TUNING_SEED, ())).privacy.unit == "none":
            tried = {key: values for key, values in tried.items() if not key.startswith("privacy.")}
        combinations = product(*([(key, float(value)) for value in values] for key, values in tried.items()))
        return [Cell(method, condition, TUNING_SEED, chosen) for chosen in combinations]

    def verdict_cells(self, chosen: Mapping[tuple[str, str], Chosen]) -> list[Cell]:
        """The runs that are reported, with what was chosen by (method, condition)."""
        return [
            Cell(method, name, seed, chosen[method, condition.like or name])
            for name, condition in self.conditions.items()
            for method in self.methods
            for seed in self.seeds
        ]

    def config(self, cell: Cell) -> Config:
        """The cell's whole configuration: it alone decides the result.

        The adapter's random factor varies with the seed, and so do head, partition, sampling and noise. Runs among
        which values are chosen see the validation split alone.

        Raises:
            ConfigError: keys or values that do not fit, with the place in the grid.
        """
        condition = self._condition(cell.condition)
        values = merge(self.base, condition.set)
        values = merge(values, self.study.methods[cell.method])
        values = merge(values, dict(cell.chosen) | {"seed": cell.seed, "adapter.seed": cell.seed})
        if cell.seed == TUNING_SEED:
            values = merge(values, {"data.evaluate_on": "validation"})
        where = f"study {self.name}, {cell.condition}, {cell.method}"
        complete = from_mapping(values, where).model_dump()
        for key, factor in condition.factor.items():
            complete = merge(complete, {key: factor * float(_value(complete, key, where))})
        return from_mapping(complete, where)

    def _condition(self, name: str) -> Condition:
        """A condition of the study's scale, run or not: values may be chosen in one that is not."""
        return self.study.conditions_at(self.scale)[name]


def load_grid(
    name: str, scale: Scale, size: Size, overrides: Mapping[str, Any] | None = None, base: str | None = None
) -> Grid:
    """The part of a study that is to be run; ``overrides`` change the configuration that all cells share.

    Args:
        name: of the study; scale, size: which part of it.
        overrides: dotted keys and values.
        base: one of the scale's other bases; its own where None.

    Raises:
        ConfigError: no such study, scale or base, or an override that does not fit.
    """
    study = load_study(name)
    if scale not in study.scales:
        raise ConfigError(f"study {name} has no scale {scale!r}; choose one of {', '.join(study.scales)}")
    study = study.on_base(scale, base)
    at = study.scales[scale]
    part: GridSize = getattr(at, size)
    shared = yaml.safe_load((files(__package__) / "bases" / f"{at.base}.yaml").read_text(encoding="utf-8"))
    for changes in (at.set, part.set, overrides or {}):
        shared = merge(shared, changes)
    conditions = study.conditions_at(scale)
    kept = part.conditions or list(conditions)
    return Grid(
        name=name,
        study=study,
        scale=scale,
        size=size,
        base=shared,
        methods=part.methods or list(study.methods),
        conditions={key: conditions[key] for key in kept},
        tried=at.tried | part.tried,
        seeds=range(part.seeds),
    )


def with_seeds(grid: Grid, seeds: int) -> Grid:
    """The grid with another number of seeds."""
    return replace(grid, seeds=range(seeds))


def _value(values: Mapping[str, Any], key: str, where: str) -> float:
    found: Any = values
    for part in key.split("."):
        found = found[part]
    if not isinstance(found, int | float):
        raise ConfigError(f"{where}: factor.{key} needs a number to multiply, and {key} is {found!r}")
    return float(found)
