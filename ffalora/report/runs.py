"""Reading run folders: what ``simulate`` wrote, one record for each method and seed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from ..data.files import SUFFIXES
from ..files.numbers import restored
from ..runs.folder import ENVIRONMENT, METRICS, SUMMARY, rows_of

CONFIG, STUDY, SEED = "config.yaml", "study.yaml", "seed-"
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
    """A folder that holds no run, or a damaged one."""


@dataclass(frozen=True)
class Run:
    """One method with one seed.

    Attributes:
        label: the method's name; runs of one label differ in the seed alone.
        top: the folder that was given to ``ffalora simulate --output``.
        config: the resolved configuration.
        rounds: rows of ``metrics.jsonl``.
        epsilon: the largest client's ε: of a finished run the one it states, else that after the last round. None
            without privacy, and where not all clients report theirs.
        partition: who holds what: client, samples, classes.
        environment, privacy_text: as written by the run; empty where it was interrupted.
        baselines: what the run has to beat; empty where it was not asked for.
        evaluated: of how many rows the metrics are; None where nobody wrote it down.
        answers: of a language model to the questions it was evaluated on, each with ``prompt``, ``answer`` and
            ``reference``; untrained: the same of the model before training. Empty where they were not kept.
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
        return len(self.rounds) >= self.config["federation"]["rounds"]


def read_runs(folders: Iterable[str | Path]) -> list[Run]:
    """All runs in the given folders; a folder is a single run, or holds one for each method and seed.

    Parts of a study are such folders, too: a cell, or all cells of a condition.

    Raises:
        ReportError: no completed round in a folder, or a file of it cannot be read; a whole study.
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


def read_top_config(top: Path) -> dict[str, Any]:
    """The configuration at the top of a run folder: of all methods together."""
    return _read(top / CONFIG, yaml.safe_load)


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
    places = [file.parent for depth in ("", "*/", "*/*/", "*/*/*/") for file in sorted(top.glob(depth + METRICS))]
    runs = [_read_run(top, place) for place in places]
    runs = [run for run in runs if run.rounds]
    if not runs:
        raise ReportError(f"{top} holds no completed round; give the folder of a run (ffalora simulate --output)")
    order = list(_read(top / CONFIG, yaml.safe_load).get("methods") or {}) if (top / CONFIG).exists() else []
    return sorted(runs, key=lambda run: order.index(run.label) if run.label in order else len(order))


def _read_run(top: Path, place: Path) -> Run:
    config = _read(place / CONFIG, yaml.safe_load)
    names = [part for part in place.relative_to(top).parts if not part.startswith(SEED)]
    rounds, summary = _read(place / METRICS, rows_of), _read(place / SUMMARY, json.loads, {})
    return Run(
        label="/".join(names) or config["federation"]["strategy"],
        top=top,
        config=config,
        rounds=rounds,
        epsilon=epsilon_of(rounds, summary),
        partition=_read(place / "partition.json", json.loads, []),
        environment=_read(place / ENVIRONMENT, json.loads, {}),
        privacy_text=_read(place / "privacy.txt", bytes.decode, ""),
        baselines=_read(place / "baselines.json", json.loads, []),
        evaluated=(summary.get("evaluated") or {}).get("rows"),
        answers=_read(place / "answers.json", json.loads, []),
        untrained=_read(place / "answers-untrained.json", json.loads, []),
    )


def epsilon_of(rounds: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> float | None:
    """The largest client's ε, as :class:`Run` has it.

    Args:
        rounds: rows of ``metrics.jsonl``. summary: of a finished run, which may state more than its last row: what
            clients spent in rounds that failed; else empty.
    """
    last = rounds[-1] if rounds else {}
    return restored(summary.get("epsilon", last.get("epsilon")))


def _read(path: Path, parse: Any, missing: Any = None) -> Any:
    if missing is not None and not path.exists():
        return missing
    try:
        return parse(path.read_bytes())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ReportError(f"{path} cannot be read: {error}; run again with --resume, or leave this run out") from None
