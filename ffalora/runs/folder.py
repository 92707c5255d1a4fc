"""The folder of a run: names of its files, its rows, and where its adapter lies. Rows are added to their file one by
one; every other file is there whole or not at all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import Required, TypedDict

from ..config import Config
from ..files.atomic import append_durably, write_atomically
from ..files.numbers import restored, to_json

CHECKPOINT, LEDGERS, METRICS = "checkpoint/checkpoint.safetensors", "checkpoint/ledgers", "metrics.jsonl"
SUMMARY, BASELINES, ENVIRONMENT = "summary.json", "baselines.json", "environment.json"
ANSWERS, UNTRAINED_ANSWERS = "answers.json", "answers-untrained.json"
BUNDLE_FILE = "ffalora_bundle.json"  # of a finished adapter: how it was made


class Row(TypedDict, total=False):
    """A row of ``metrics.jsonl``, as far as others than its run read it; where costs of a round are a secret, it has
    none.
    """

    round: Required[int]
    metrics: Required[dict[str, float]]
    epsilon: Required[float | None]
    seconds: float
    bytes_up: float
    bytes_down: float
    clipped: float


_ROW = TypeAdapter(Row)


@dataclass
class RunResult:
    """A finished run: its folder, its last metrics and costs, and the rows of ``metrics.jsonl``."""

    folder: Path
    summary: dict[str, Any]
    rounds: list[dict[str, Any]]


def run_places(config: Config, folder: Path) -> dict[Path, Config]:
    """Every run by its folder: the folder itself for a single one, else a subfolder for each method and seed."""
    places: dict[Path, Config] = {}
    for repeat in range(config.seeds):
        for name, one in config.runs().items():
            place = folder / name if config.methods else folder
            place = place / f"seed-{one.seed + repeat}" if config.seeds > 1 else place
            places[place] = repeated(one, repeat)
    return places


def repeated(config: Config, repeat: int) -> Config:
    """A run's configuration the ``repeat``-th time. ``adapter.seed`` counts with ``seed``: a factor that is never
    trained is part of a run's luck.
    """
    factors = config.adapter.model_copy(update={"seed": config.adapter.seed + repeat})
    return config.model_copy(update={"seed": config.seed + repeat, "seeds": 1, "adapter": factors})


def completed_rows(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Rows of the rounds that the checkpoint covers; a row that was written after it is run again.

    Raises:
        ValueError: a line holds no row.
    """
    path = folder / METRICS
    if not path.exists() or rounds == 0:
        return []
    rows, damaged = rows_of(path.read_bytes())
    if damaged:
        raise ValueError(
            f"{path}: line {damaged[0]} is no row of a round; put a copy of the file in its place, or run again in "
            "another folder"
        )
    return [row for row in rows if row["round"] <= rounds]


def rows_of(content: bytes) -> tuple[list[dict[str, Any]], list[int]]:
    """What :func:`write_rows` and :func:`append_row` wrote, and the numbers (from 1) of lines that hold none of it. A
    last one that does not end is being written, or a kill tore it: it may be no row.
    """
    rows: list[dict[str, Any]] = []
    damaged = []
    *whole, last = content.split(b"\n")
    for number, line in enumerate([*whole, last], 1):
        row = _row_of(line)
        if row is not None and (not rows or row["round"] > rows[-1]["round"]):
            rows.append(row)
        elif line.strip() and number <= len(whole):
            damaged.append(number)
    return rows, damaged


def _row_of(line: bytes) -> dict[str, Any] | None:
    try:
        row = restored(json.loads(line))
        _ROW.validate_python(row, strict=True)
    except (ValueError, RecursionError):
        return None
    return row


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


def adapter_folder(folder: str | Path) -> Path:
    """The folder of the adapter, of a run's folder or of that folder itself.

    Raises:
        CheckpointError: there are several runs, which are named, and it is not said which; or no finished adapter.
    """
    from ..adapters import CheckpointError  # imports torch, which the names of files do without

    folder = Path(folder)
    if (folder / BUNDLE_FILE).exists():
        return folder
    if (folder / "adapter" / BUNDLE_FILE).exists():
        return folder / "adapter"
    inside = sorted(str(found.parents[1]) for found in folder.glob(f"*/**/adapter/{BUNDLE_FILE}"))
    if inside:
        raise CheckpointError(f"{folder} holds {len(inside)} runs; give one of them: {', '.join(inside[:6])}")
    if any((place / CHECKPOINT).exists() for place in (folder, *folder.glob("*/"))):
        raise CheckpointError(
            f"{folder} holds a run that has not finished, and no adapter yet: go on with it by the command that began "
            f"it and --resume --output {folder}"
        )
    raise CheckpointError(f"{folder} holds no finished adapter; give the folder of a run, or its 'adapter' folder")
