"""A study as its file says it: a question, methods and conditions, the claims that it tests, and its sizes.

A study is a YAML file of ``grids/``; what its cells train on is one of ``bases/``, and how is one of ``protocols/``.
"""

from __future__ import annotations

from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from ..config import ConfigError, Section
from .claims import Claim
from .protocol import Scale, Tried, shipped

Size = Literal["smoke", "verdict"]


class Condition(Section):
    """One setting in which every method is compared."""

    says: str = Field("", description="the condition in a few words, for tables and plots")
    set: dict[str, Any] = Field(default_factory=dict, description="dotted configuration keys and values")
    like: str | None = Field(None, description="take what was chosen for this other condition")
    factor: dict[str, float] = Field(
        default_factory=dict, description="dotted keys whose value (chosen or configured) is multiplied"
    )
    methods: list[str] | None = Field(None, description="only these methods are run in it")


class GridSize(Section):
    """How much of the grid is run."""

    seeds: int | None = Field(None, ge=1, description="runs of every cell (default: as the power analysis says)")
    methods: list[str] | None = Field(None, description="only these methods")
    conditions: list[str] | None = Field(None, description="only these conditions")
    set: dict[str, Any] = Field(default_factory=dict, description="dotted keys that make a run shorter")


class OtherBase(Section):
    """What differs where a scale is run on another model or other data."""

    metric: str | None = Field(None, description="instead of the study's")
    conditions: dict[str, Condition] = Field(default_factory=dict, description="instead of those of the same names")


class StudyScale(Section):
    """A study at one scale: what its cells share, how much is run."""

    base: str = Field(description="configuration in bases/ that all cells share")
    other_bases: dict[str, OtherBase] = Field(
        default_factory=dict, description="other configurations in bases/ for which the same is asked"
    )
    set: dict[str, Any] = Field(default_factory=dict, description="dotted keys that differ from the base")
    conditions: dict[str, Condition] = Field(
        default_factory=dict, description="instead of the study's own of the same names"
    )
    smoke: GridSize
    verdict: GridSize = GridSize()


class Study(Section):
    """A question and the grid that answers it."""

    title: str
    question: str = Field(description="what is asked, in a sentence or two")
    source: str = Field(description="who claims what, and where")
    metric: str = Field("accuracy", description="the metric that tables and claims use")
    counts_costs: bool = Field(False, description="count the operations and bytes of a local step of every cell, too")
    axis: str = Field("condition", description="what the conditions vary, for the axis of the plot")
    tier: Literal["A", "B"] = Field("B", description="A: the paper's claims; B: rivals, and what the paper left open")
    order: int = Field(100, description="its place among the studies of its tier, the most important first")
    methods: dict[str, dict[str, Any]] = Field(description="a name, and the dotted keys in which the method differs")
    tried: dict[str, Tried] = Field(
        default_factory=dict, description="by method, values to choose from beside or instead of the protocol's"
    )
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
            named = set(self.tried).union(*(c.methods or () for c in conditions.values()))
            if unknown := sorted(named - set(self.methods)):
                raise ValueError(f"{unknown[0]!r} is not one of the methods {', '.join(self.methods)}")
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
        changes = {"base": base, "conditions": at.conditions | other.conditions}
        scales = self.scales | {scale: at.model_copy(update=changes)}
        return self.model_copy(update={"scales": scales, "metric": other.metric or self.metric})

    def conditions_at(self, scale: Scale) -> dict[str, Condition]:
        """Every condition by name, as it is at a scale."""
        return self.conditions | self.scales[scale].conditions


def study_names() -> list[str]:
    """The studies that come with the package."""
    return list(shipped("grids"))


def tier_names(tier: Literal["A", "B"]) -> list[str]:
    """The studies of a tier, the most important first."""
    studies = {name: load_study(name) for name in study_names()}
    return sorted((name for name in studies if studies[name].tier == tier), key=lambda name: studies[name].order)


def load_study(name: str) -> Study:
    """A study by name.

    Raises:
        ConfigError: there is none of this name, or its file does not fit.
    """
    texts = shipped("grids")
    if name not in texts:
        raise ConfigError(f"there is no study {name!r}; choose one of {', '.join(texts)}, or theory")
    return Study.read(yaml.safe_load(texts[name]), f"study {name}: ")
