"""The cells of a study: every method in every condition with every seed, as configurations.

Cells are ordinary configurations of :mod:`ffalora.config`: everything that a study runs, ``ffalora simulate`` can run
alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import yaml

from ..config import Config, ConfigError, from_mapping
from ..config.values import merge
from ..report.tables import flatten
from .protocol import Protocol, Scale, Tried, load_protocol, shipped, usual_protocol
from .study import Condition, GridSize, Size, Study, load_study

#: Chosen values by dotted key, as pairs: hashable.
Chosen = tuple[tuple[str, float], ...]
#: Method and condition for which values are chosen.
Place = tuple[str, str]
#: Seeds of the runs that choose learning rates and the like; verdicts use the seeds from 0 upwards.
TUNING_SEEDS = (1000, 1001, 1002)
#: Fewest seeds of a verdict, and the most that the power analysis may ask for.
FEWEST_SEEDS, MOST_SEEDS = 5, 20


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


@dataclass(frozen=True)
class Grid:
    """The part of a study that one invocation runs.

    Attributes:
        name: of the study's file.
        study: the question; scale, size, protocol: which part, and how methods are trained.
        base: nested values that all cells share.
        methods, conditions: those that are run.
        first_tried: by method, the values to choose from at first.
        seeds: of the verdict runs; where ``is_powered``, the fewest: the pilot's variance says how many.
    """

    name: str
    study: Study
    scale: Scale
    size: Size
    protocol: str
    base: Mapping[str, Any]
    methods: Sequence[str]
    conditions: Mapping[str, Condition]
    first_tried: Mapping[str, Tried]
    seeds: Sequence[int]
    is_powered: bool = False

    def places(self) -> list[Place]:
        """Every method and condition that is run."""
        return [(m, name) for name, c in self.conditions.items() for m in self.methods if m in (c.methods or [m])]

    def tuned_places(self) -> list[Place]:
        """Every method and condition for which values are chosen: for its own runs, or for those of others."""
        return list(dict.fromkeys((m, self.conditions[name].like or name) for m, name in self.places()))

    def tried(self, place: Place) -> Tried:
        """The values to choose from at first.

        Keys of ``privacy`` are not tried where nothing is private: they would change nothing.
        """
        tried = dict(self.first_tried[place[0]])
        if self.config(Cell(*place, TUNING_SEEDS[0], ())).privacy.unit == "none":
            tried = {key: values for key, values in tried.items() if not key.startswith("privacy.")}
        return tried

    def tuning_cells(self, place: Place, tried: Tried | None = None) -> list[Cell]:
        """The runs among which a method's values are chosen for a condition: every combination of what is tried, each
        with every seed that chooses.
        """
        values = self.tried(place) if tried is None else tried
        combinations = product(*([(key, float(value)) for value in each] for key, each in values.items()))
        return [Cell(*place, seed, chosen) for chosen in combinations for seed in TUNING_SEEDS]

    def first_chosen(self) -> dict[Place, Chosen]:
        """The first of what is tried everywhere: for what does not depend on the choice."""
        return {place: self.tuning_cells(place)[0].chosen for place in self.tuned_places()}

    def verdict_cells(self, chosen: Mapping[Place, Chosen]) -> list[Cell]:
        """The runs that are reported, with what was chosen: seed by seed, so that what is finished is paired."""
        return [
            Cell(method, name, seed, chosen[method, self.conditions[name].like or name])
            for seed in self.seeds
            for method, name in self.places()
        ]

    def config(self, cell: Cell) -> Config:
        """The cell's whole configuration: it alone decides the result.

        The adapter's random factor varies with the seed, and so do partition, sampling and noise. Runs among which
        values are chosen see the validation split alone.

        Raises:
            ConfigError: keys or values that do not fit, with the place in the grid.
        """
        condition = self._condition(cell.condition)
        values = merge(self.base, condition.set)
        values = merge(values, self.study.methods[cell.method])
        values = merge(values, dict(cell.chosen) | {"seed": cell.seed, "adapter.seed": cell.seed})
        if cell.seed in TUNING_SEEDS:
            values = merge(values, {"data.evaluate_on": "validation"})
        where = f"study {self.name}, {cell.condition}, {cell.method}"
        complete = from_mapping(values, where).model_dump()
        for key, factor in condition.factor.items():
            complete = merge(complete, {key: factor * float(_value(complete, key, where))})
        return from_mapping(complete, where)

    def folder_name(self, cell: Cell) -> str:
        """The name of the cell's run folder: cells with one configuration share it, whatever study they belong to."""
        config = self.config(cell)
        text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
        return f"{config.federation.strategy}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def _condition(self, name: str) -> Condition:
        """A condition of the study's scale, run or not: values may be chosen in one that is not."""
        return self.study.conditions_at(self.scale)[name]


def load_grid(
    name: str,
    scale: Scale,
    size: Size,
    overrides: Mapping[str, Any] | None = None,
    base: str | None = None,
    protocol: str | None = None,
) -> Grid:
    """The part of a study that is to be run; ``overrides`` change the configuration that all cells share.

    Args:
        name: of the study; scale, size: which part of it.
        overrides: dotted keys and values.
        base: one of the scale's other bases; its own where None.
        protocol: how methods are trained; the scale's usual one where None.

    Raises:
        ConfigError: no such study, scale, base or protocol, or an override that does not fit or that cells set.
    """
    study = load_study(name)
    if scale not in study.scales:
        raise ConfigError(f"study {name} has no scale {scale!r}; choose one of {', '.join(study.scales)}")
    study = study.on_base(scale, base)
    at = study.scales[scale]
    part: GridSize = getattr(at, size)
    named = protocol or usual_protocol(scale)
    way = load_protocol(named)
    shared = yaml.safe_load(shipped("bases")[at.base])
    for changes in (way.set, way.scales[scale].set, at.set, part.set, overrides or {}):
        shared = merge(shared, changes)
    conditions = study.conditions_at(scale)
    methods = part.methods or list(study.methods)
    grid = Grid(
        name=name,
        study=study,
        scale=scale,
        size=size,
        protocol=named,
        base=shared,
        methods=methods,
        conditions={key: conditions[key] for key in part.conditions or conditions},
        first_tried={method: _first_tried(study, way, scale, size, method) for method in study.methods},
        seeds=range(part.seeds or FEWEST_SEEDS),
        is_powered=size == "verdict" and part.seeds is None and not study.counts_costs,
    )
    _check_overrides(grid, overrides or {})
    return grid


def _check_overrides(grid: Grid, overrides: Mapping[str, Any]) -> None:
    """What cells share may be changed; what the study varies from cell to cell may not."""
    setters = {"every seed": ("seed", "adapter.seed"), "the choice of values": ("data.evaluate_on",)} | {
        f"method {method}": (*grid.study.methods[method], *grid.first_tried[method]) for method in grid.methods
    }
    setters |= {f"condition {name}": tuple(condition.set) for name, condition in grid.conditions.items()}
    for key, (setter, own) in product(overrides, setters.items()):
        for taken in own:
            if f"{taken}.".startswith(f"{key}.") or key.startswith(f"{taken}."):
                raise ConfigError(
                    f"--{key}: study {grid.name} sets {taken} itself, for {setter}, and a flag is for what all cells "
                    "share; leave it out"
                )


def setting(grid: Grid) -> dict[str, Any]:
    """The whole configuration of one cell, the package's defaults included."""
    (cell, *_) = grid.verdict_cells(grid.first_chosen())
    return grid.config(cell).model_dump(mode="json")


def changed_keys(before: Mapping[str, Any], grid: Grid) -> list[str]:
    """The dotted keys of a :func:`setting` that have another value today, or none: rows that were measured under
    another are not comparable. A key that came since is taken to leave runs as they were.
    """
    now = flatten(setting(grid))
    return [key for key, value in flatten(before).items() if key not in now or now[key] != value]


def with_seeds(grid: Grid, seeds: int, first: int = 0) -> Grid:
    """The grid with a given number of seeds, counted from ``first``.

    Raises:
        ConfigError: no whole number of seeds, or none at all; seeds that choose values among them.
    """
    if type(seeds) is not int or seeds < 1:
        raise ConfigError(f"--seeds {seeds}: a study needs a whole number of seeds, at least one, such as --seeds 5")
    asked = range(first, first + seeds)
    if taken := sorted(set(asked) & set(TUNING_SEEDS)):
        raise ConfigError(
            f"--first-seed {first}: of {seeds} seeds from there on, {', '.join(map(str, taken))} choose values on the "
            "validation split, and no verdict is of these; begin elsewhere"
        )
    return replace(grid, seeds=asked, is_powered=False)


def _first_tried(study: Study, protocol: Protocol, scale: Scale, size: Size, method: str) -> Tried:
    """The protocol's and the study's own values; one of each, in the middle, where nothing is to be chosen."""
    tried = protocol.tried(scale, method) | study.tried.get(method, {})
    if size == "smoke" or study.counts_costs:
        return {key: [values[len(values) // 2]] for key, values in tried.items()}
    return tried


def _value(values: Mapping[str, Any], key: str, where: str) -> float:
    found: Any = values
    for part in key.split("."):
        found = found[part]
    if not isinstance(found, int | float):
        raise ConfigError(f"{where}: factor.{key} needs a number to multiply, and {key} is {found!r}")
    return float(found)
