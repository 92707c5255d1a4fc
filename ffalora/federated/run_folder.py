"""What a run leaves on disk, file by file; each file is there whole or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic import write_atomically
from ..bundle import save_bundle
from ..config import to_yaml
from ..plain import restored, to_json
from .experiment import Experiment
from .records import environment, privacy_statement, summary
from .strategies import ServerState

CHECKPOINT, LEDGERS, METRICS = "checkpoint/checkpoint.safetensors", "checkpoint/ledgers", "metrics.jsonl"
SUMMARY = "summary.json"


@dataclass
class RunResult:
    """A finished run: its folder, its last metrics and costs, and the rows of ``metrics.jsonl``."""

    folder: Path
    summary: dict[str, Any]
    rounds: list[dict[str, Any]]


def open_folder(experiment: Experiment, folder: Path) -> None:
    """What is known before the first round: configuration, environment, who holds what."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.yaml", to_yaml(experiment.config).encode())
    _write_json(folder / "environment.json", environment(experiment))
    _write_json(folder / "partition.json", experiment.partition_table)


def completed_rows(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Rows of the rounds that the checkpoint covers; a row that was written after it is run again."""
    path = folder / METRICS
    if not path.exists() or rounds == 0:
        return []
    found = [restored(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in found if row["round"] <= rounds]


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    """One line a round."""
    write_atomically(folder / METRICS, "".join(to_json(row) + "\n" for row in rows).encode())


def finish_folder(experiment: Experiment, server: ServerState, folder: Path, rows: list[dict[str, Any]]) -> RunResult:
    """The adapter as it is saved, the privacy statement, and the summary."""
    result = summary(experiment, rows)  # of what was trained and sent: what is saved may have another rank
    experiment.strategy.export(server)
    save_bundle(
        folder / "adapter", experiment.adapters, experiment.loaded, experiment.config, experiment.data.label_names
    )
    statement = privacy_statement(experiment)
    _write_json(folder / "privacy.json", statement.as_dict())
    write_atomically(folder / "privacy.txt", statement.to_text().encode())
    _write_json(folder / SUMMARY, result)
    return RunResult(folder, result, rows)


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, to_json(value, indent=2, default=str).encode())
