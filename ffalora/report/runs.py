"""Reading run folders: what ``simulate`` wrote, one record for each method and seed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config import Config, ConfigError
from ..data.files import SUFFIXES
from ..runs.files import CONFIG, PARTITION, STATEMENT, RunFiles
from ..runs.folder import ANSWERS, BASELINES, ENVIRONMENT, METRICS, SUMMARY, UNTRAINED_ANSWERS, run_places

STUDY, SEED = "study.yaml", "seed-"
#: How deep in a folder runs lie: itself, or below method, condition and seed.
_DEPTHS = ("", "*/", "*/*/", "*/*/*/")
_TITLES = {
    "ffa": "FFA-LoRA",
    "lora": "LoRA",
    "rolora": "RoLoRA",
    "fedsa": "FedSA-LoRA",
    "fedsvd": "FedSVD",
    "fedsb": "Fed-SB",
    "lalora": "LA-LoRA",
    "prism": "PRISM",
    "fedex": "FedEx-LoRA",
    "flora": "FLoRA",
    "flexlora": "FlexLoRA",
    "hetlora": "HetLoRA",
}


class ReportError(ValueError):
    """A folder that holds no run, or one of which nothing can be read."""


@dataclass(frozen=True)
class Run:
    """One method with one seed.

    Attributes:
        label: the method's name; runs of one label differ in the seed alone.
        top: the folder that was given to ``ffalora simulate --output``.
        config: the resolved configuration.
        rounds: rows of ``metrics.jsonl``.
        epsilon: the largest client's ε: of a finished run the one it states, else that after the last round. None
            without privacy, where not all clients report theirs, and where what says it cannot be read.
        partition: who holds what: client, samples, classes.
        environment, privacy_text: as written by the run; empty where it was interrupted.
        baselines: what the run has to beat; empty where it was not asked for.
        evaluated: of how many rows the metrics are; None where nobody wrote it down.
        answers: of a language model to the questions it was evaluated on, each with ``prompt``, ``answer`` and
            ``reference``; untrained: the same of the model before training. Empty where they were not kept.
        unreadable: files (and lines of them) that are damaged and left out.
        awaited: runs of the same folder that have no completed round.
    """

    label: str
    top: Path
    config: dict[str, Any]
    rounds: list[dict[str, Any]]
    epsilon: float | None = None
    partition: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    privacy_text: str = ""
    baselines: list[dict[str, Any]] = field(default_factory=list)
    evaluated: int | None = None
    answers: list[dict[str, str]] = field(default_factory=list)
    untrained: list[dict[str, str]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    awaited: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the last round that was evaluated."""
        return next((row["metrics"] for row in reversed(self.rounds) if row.get("metrics")), {})

    @property
    def is_private(self) -> bool:
        """Whether anything was to be protected."""
        return self.config["privacy"]["unit"] != "none"

    @property
    def is_finished(self) -> bool:
        """Whether all rounds of the configuration were completed."""
        return self.completed >= self.config["federation"]["rounds"]

    @property
    def completed(self) -> int:
        """The number of rounds that were."""
        return self.rounds[-1]["round"]

    def total(self, cost: str) -> float | None:
        """A cost of all rounds together; None where a round's is a secret, or cannot be read."""
        known = [row[cost] for row in self.rounds if cost in row]
        return sum(known) if len(known) == self.completed else None


def read_runs(folders: Iterable[str | Path]) -> list[Run]:
    """All runs in the given folders; a folder is a single run, or holds one for each method and seed.

    Parts of a study are such folders, too: a cell, or all cells of a condition.

    Raises:
        ReportError: no completed round (that can be read) in a folder; a whole study. ConfigError: a run's
            configuration cannot be read, and no folder above it has it.
    """
    tops = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    found = [_read_top(top) for top in tops]
    labels = [{run.label for run in runs} for runs in found]
    is_ambiguous = sum(map(len, labels)) > len(set().union(*labels))
    if is_ambiguous:
        found = [
            [replace(run, label=f"{name}/{run.label}") for run in runs]
            for name, runs in zip(_distinct_names(tops), found, strict=True)
        ]
    return [run for runs in found for run in runs]


def by_label(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs of each method, in the order in which the methods first appear."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    return groups


def method_title(label: str) -> str:
    """A method's name as papers write it; any other label as it is."""
    return _TITLES.get(label, label)


def data_title(config: dict[str, Any]) -> str:
    """The name of a run's data, without the folder and suffix of a file."""
    name = str(config["data"]["name"])
    path = Path(name)
    return path.stem if path.suffix.lower() in SUFFIXES else (path.name if path.is_absolute() else name)


def read_top_config(top: Path) -> Config | None:
    """The configuration at the top of a run folder: of all methods together; None where it is missing or damaged."""
    try:
        return RunFiles(top).config() if (top / CONFIG).exists() else None
    except ConfigError:
        return None


def cells_of(study: Path) -> Path:
    """Where the runs of a study's folder are: in it, or beside it where studies share them."""
    own, shared = study / "cells", study.parent / "cells"
    return shared if shared.exists() and not own.exists() else own


def _distinct_names(tops: Sequence[Path]) -> list[str]:
    """The folders' names, or their paths below the folder that holds them all where names are the same."""
    if len({top.name for top in tops}) == len(tops):
        return [top.name for top in tops]
    common = Path(os.path.commonpath(tops))
    return [str(top.relative_to(common)) if top != common else top.name for top in tops]


def _read_top(top: Path) -> list[Run]:
    if (top / STUDY).exists():
        raise ReportError(
            f"{top} holds a whole study, whose page is study.html; to lay some of its runs side by side, give their "
            f"folders in {cells_of(top)}"
        )
    shared, places = (
        read_top_config(top),
        [file.parent for depth in _DEPTHS for file in sorted(top.glob(depth + METRICS))],
    )
    parts = {} if shared is None else run_places(shared, top)
    found = [_read_run(top, place, parts.get(place)) for place in places]
    runs = [run for run in found if run.rounds]
    if not runs:
        damaged = "".join(f"; {name} is damaged" for run in found for name in run.unreadable)
        raise ReportError(
            f"{top} holds no completed round{damaged}; give the folder of a run (ffalora simulate --output)"
        )
    held = {place for run, place in zip(found, places, strict=True) if run.rounds}
    awaited = [str(place.relative_to(top.parent)) for place in parts if place not in held]
    order = [] if shared is None else list(shared.methods or {})
    ordered = sorted(runs, key=lambda run: order.index(run.label) if run.label in order else len(order))
    return [replace(run, awaited=awaited) for run in ordered]


def _read_run(top: Path, place: Path, otherwise: Config | None) -> Run:
    files = RunFiles(place)
    config = files.config(otherwise).model_dump(mode="json")
    names = [part for part in place.relative_to(top).parts if not part.startswith(SEED)]
    rounds, summary = files.rows(), files.json(SUMMARY, {})
    return Run(
        label="/".join(names) or config["federation"]["strategy"],
        top=top,
        config=config,
        rounds=rounds,
        epsilon=files.epsilon(rounds, summary),
        partition=files.json(PARTITION, []),
        environment=files.json(ENVIRONMENT, {}),
        privacy_text=files.text(STATEMENT),
        baselines=files.json(BASELINES, []),
        evaluated=(summary.get("evaluated") or {}).get("rows"),
        answers=files.json(ANSWERS, []),
        untrained=files.json(UNTRAINED_ANSWERS, []),
        unreadable=[str(Path(*place.relative_to(top.parent).parts) / name) for name in files.unreadable],
    )
