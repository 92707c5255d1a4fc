"""A study as data: a question, a grid of methods and conditions, the claims that it tests, and its sizes.

A study is a YAML file of ``grids/``; the configuration that all its cells share is one of ``bases/``. Cells are
ordinary configurations of :mod:`ffalora.config`: everything that a study runs, ``ffalora simulate`` can run alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import product
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from ..config import Config, ConfigError, Section, from_mapping
from ..config_messages import explain_errors
from ..config_values import merge
from .claims import Claim

#: Values to choose from, by method and dotted key.
Tried = dict[str, dict[str, list[float]]]
#: Chosen values by dotted key, as pairs: hashable.
Chosen = tuple[tuple[str, float], ...]
Scale = Literal["laptop", "paper"]
Size = Literal["smoke", "verdict"]
#: Seed of the runs that choose learning rates and the like; verdicts use the seeds from 0 upwards.
TUNING_SEED = 1000


class Condition(Section):
    """One setting in which every method is compared."""

    says: str = Field("", description="the condition in a few words, for tables and plots")
    set: dict[str, Any] = Field(default_factory=dict, description="dotted configuration keys and values")
    like: str | None = Field(None, description="take what was chosen for this other condition")
    factor: dict[str, float] = Field(
        default_factory=dict, description="dotted keys whose value (chosen or configured) is multiplied"
    )


class GridSize(Section):
    """How much of the grid is run."""

    seeds: int = Field(5, ge=1, description="runs of every cell")
    methods: list[str] | None = Field(None, description="only these methods")
    conditions: list[str] | None = Field(None, description="only these conditions")
    set: dict[str, Any] = Field(default_factory=dict, description="dotted keys that make a run shorter")
    tried: Tried = Field(default_factory=dict, description="by method, instead of the scale's")


class OtherBase(Section):
    """What differs where a scale is run on another model or other data."""

    metric: str | None = Field(None, description="instead of the study's")
    conditions: dict[str, Condition] = Field(default_factory=dict, description="instead of those of the same names")
    tried: Tried = Field(default_factory=dict, description="by method, instead of the scale's")


class StudyScale(Section):
    """A study at one scale: what its cells share, what is tried, how much is run."""

    base: str = Field(description="configuration in bases/ that all cells share")
    other_bases: dict[str, OtherBase] = Field(
        default_factory=dict, description="other configurations in bases/ for which the same is asked"
    )
    set: dict[str, Any] = Field(default_factory=dict, description="dotted keys that differ from the base")
    conditions: dict[str, Condition] = Field(
        default_factory=dict, description="instead of the study's own of the same names"
    )
    tried: Tried = Field(
        default_factory=dict,
        description="by method, dotted keys and the values among which the validation split chooses for each condition",
    )
    smoke: GridSize
    verdict: GridSize


class Study(Section):
    """A question and the grid that answers it."""

    title: str
    question: str = Field(description="what is asked, in a sentence or two")
    source: str = Field(description="who claims what, and where")
    metric: str = Field("accuracy", description="the metric that tables and claims use")
    counts_costs: bool = Field(False, description="count the operations and bytes of a local step of every cell, too")
    axis: str = Field("condition", description="what the conditions vary, for the axis of the plot")
    methods: dict[str, dict[str, Any]] = Field(description="a name, and the dotted keys in which the method differs")
    conditions: dict[str, Condition]
    claims: list[Claim]
    scales: dict[Scale, StudyScale]

    @model_validator(mode="after")
    def _names_are_known(self) -> Study:
        for scale, at in self.scales.items():
            named = set(at.conditions).union(*(other.conditions for other in at.other_bases.values()))
            if unknown := sorted(named - set(self.conditions)):
                raise ValueError(f"scales.{scale}: {unknown[0]!r} is not one of {', '.join(self.conditions)}")
            conditions = self.conditions | at.conditions
            for name, condition in conditions.items():
                if condition.like is not None and condition.like not in conditions:
                    raise ValueError(f"conditions.{name}.like={condition.like!r} is not one of {', '.join(conditions)}")
                if condition.like is not None and conditions[condition.like].like is not None:
                    raise ValueError(f"conditions.{name}.like={condition.like!r} takes its values elsewhere")
            missing = [name for name in self.methods if "optimizer.lr" not in at.tried.get(name, {})]
            if missing:
                raise ValueError(f"scales.{scale}.tried.{missing[0]} has no values for optimizer.lr")
            for claim in self.claims:
                claim.check_names(list(self.methods), list(conditions))
        return self

    def on_base(self, scale: Scale, base: str | None) -> Study:
        """The study as it is run on one base: the base, and what differs there, are its scale's own.

        Args:
            scale: one of ``scales``.
            base: the scale's own where None.

        Raises:
            ConfigError: the scale has no such base.
        """
        at = self.scales[scale]
        if base is None or base == at.base:
            return self
        if base not in at.other_bases:
            known = ", ".join([at.base, *at.other_bases])
            raise ConfigError(f"--base {base!r}: {self.title} at scale {scale} has the bases {known}")
        other = at.other_bases[base]
        changes = {"base": base, "conditions": at.conditions | other.conditions, "tried": at.tried | other.tried}
        scales = self.scales | {scale: at.model_copy(update=changes)}
        return self.model_copy(update={"scales": scales, "metric": other.metric or self.metric})

    def conditions_at(self, scale: Scale) -> dict[str, Condition]:
        """Every condition by name, as it is at a scale."""
        return self.conditions | self.scales[scale].conditions


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


def study_names() -> list[str]:
    """The studies that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in (files(__package__) / "grids").iterdir())


def load_study(name: str) -> Study:
    """A study by name.

    Raises:
        ConfigError: there is none of this name, or its file does not fit.
    """
    if name not in study_names():
        raise ConfigError(f"there is no study {name!r}; choose one of {', '.join(study_names())}, or theory")
    text = (files(__package__) / "grids" / f"{name}.yaml").read_text(encoding="utf-8")
    try:
        return Study.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        said = "\n".join(explain_errors(error.errors(), {}))
        raise ConfigError(f"study {name}: {said}") from None


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
