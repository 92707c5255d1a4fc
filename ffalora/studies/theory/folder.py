"""The measurements as one table, ``results.csv``, and a folder's read back from it without running anything.

A row is one round of one method and seed. Columns are the measurements' names, joined by ``/`` where they lie inside
one another (``noise/expected/linear``); a list is written as JSON; what was not measured in a round is empty.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...config import Config, ConfigError, load_config
from ...files.numbers import restored, rows_to_csv, to_json
from ..results import RESULTS
from .answers import Runs, answer
from .plots import Rows
from .study import CONFIG, TheoryResult


def to_csv(runs: Runs) -> str:
    """One row a round, in the order of ``runs``; numbers with all their digits."""
    rows = [{"method": method, "seed": seed} | _flat(row) for (method, seed), rows in runs.items() for row in rows]
    return rows_to_csv(rows)


def read_csv(path: Path) -> dict[tuple[str, int], Rows]:
    """The rows of a file that :func:`to_csv` wrote, by (method, seed); None for what was not measured."""
    runs: dict[tuple[str, int], Rows] = {}
    for line in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))):
        method, seed = line.pop("method"), int(line.pop("seed"))
        row: dict[str, Any] = {name.split("/")[0]: None for name in line}
        for name, cell in line.items():
            if cell:
                _put(row, name.split("/"), _value(cell))
        runs.setdefault((method, seed), []).append(row)
    return runs


def read_theory(folder: Path) -> tuple[Config, TheoryResult]:
    """The configuration and the answers of finished measurements, from ``config.yaml`` and ``results.csv`` alone.

    Raises:
        ConfigError: ``folder`` holds no finished measurements, or not those of all methods, seeds and rounds.
    """
    for name in (CONFIG, RESULTS):
        if not (folder / name).exists():
            raise ConfigError(f"{folder} holds no finished measurements (no {name}); go on with --resume")
    config, rows = load_config(folder / CONFIG), read_csv(folder / RESULTS)
    seeds = range(config.seed, config.seed + config.seeds)
    asked = {(method, seed) for method in config.runs() for seed in seeds}
    done = {key for key, run in rows.items() if run[-1]["round"] == config.federation.rounds}
    if asked != done:
        raise ConfigError(
            f"{folder / RESULTS}: {len(asked & done)} of the {len(asked)} runs of {CONFIG} are finished; go on with "
            "--resume"
        )
    return config, TheoryResult(*answer(rows, config), rows)


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Cells by column; None has none."""
    cells: dict[str, str] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            cells |= _flat(value, f"{prefix}{name}/")
        elif value is not None:
            cells[prefix + name] = value if isinstance(value, str) else to_json(value)
    return cells


def _put(row: dict[str, Any], names: list[str], value: Any) -> None:
    *outer, last = names
    for name in outer:
        row[name] = row.get(name) or {}
        row = row[name]
    row[last] = value


def _value(cell: str) -> Any:
    try:
        return restored(json.loads(cell))
    except ValueError:
        return restored(cell)
