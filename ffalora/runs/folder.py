"""The folder of a run: names of its files, and its rows. Rows are added to their file one by one; every other file is
there whole or not at all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import Config
from ..files.atomic import append_durably, write_atomically
from ..files.numbers import restored, to_json

CHECKPOINT, LEDGERS, METRICS = "checkpoint/checkpoint.safetensors", "checkpoint/ledgers", "metrics.jsonl"
SUMMARY, BASELINES, ENVIRONMENT = "summary.json", "baselines.json", "environment.json"
ANSWERS, UNTRAINED_ANSWERS = "answers.json", "answers-untrained.json"


@dataclass
class RunResult:
    """A finished run: its folder, its last metrics and costs, and the rows of ``metrics.jsonl``."""

    folder: Path
    summary: dict[str, Any]
    rounds: list[dict[str, Any]]


def run_places(config: Config, folder: Path) -> dict[Path, Config]:
    """Every run by its folder: the folder itself for a single one, else a subfolder for each method and seed.

    ``adapter.seed`` counts with ``seed``: a factor that is never trained is part of a run's luck.
    """
    places: dict[Path, Config] = {}
    for repeat in range(config.seeds):
        for name, one in config.runs().items():
            place = folder / name if config.methods else folder
            place = place / f"seed-{one.seed + repeat}" if config.seeds > 1 else place
            factors = one.adapter.model_copy(update={"seed": one.adapter.seed + repeat})
            places[place] = one.model_copy(update={"seed": one.seed + repeat, "seeds": 1, "adapter": factors})
    return places


def completed_rows(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Rows of the rounds that the checkpoint covers; a row that was written after it is run again."""
    path = folder / METRICS
    if not path.exists() or rounds == 0:
        return []
    return [row for row in rows_of(path.read_bytes()) if row["round"] <= rounds]


def rows_of(content: bytes) -> list[dict[str, Any]]:
    """What :func:`write_rows` and :func:`append_row` wrote; one that is being written, or that a kill tore, is none."""
    whole, _, last = content.rpartition(b"\n")
    try:
        found = [json.loads(last)] if last.strip() else []  # no beginning of a row can be read
    except ValueError:
        found = []
    return [restored(row) for row in [*map(json.loads, filter(bytes.strip, whole.splitlines())), *found]]


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    """One line a round, in the place of whatever rows there were."""
    write_atomically(folder / METRICS, b"".join(map(_line, rows)))


def append_row(folder: Path, row: dict[str, Any]) -> None:
    """One more round, behind the rows that :func:`write_rows` wrote."""
    append_durably(folder / METRICS, _line(row))


def _line(row: dict[str, Any]) -> bytes:
    return to_json(row).encode() + b"\n"


def write_json(path: Path, value: Any) -> None:
    """The value as indented JSON, whole or not at all."""
    write_atomically(path, to_json(value, indent=2, default=str).encode())
