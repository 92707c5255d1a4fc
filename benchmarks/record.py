"""Rows of measurements: one schema for every benchmark, appended to a CSV, with what a reader needs to repeat them."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from csv_tables import extend_table

from ffalora_kernels.cpuinfo import processor

_PACKAGES = ("torch", "triton", "transformers", "opacus", "peft", "opake")
OK, OUT_OF_MEMORY, UNAVAILABLE, WRONG, FAILED = "ok", "out of memory", "unavailable", "wrong", "failed"


@dataclass(frozen=True)
class Row:
    """One measured case of one provider.

    Attributes:
        section: part of a benchmark, e.g. 'ops' or 'steps'.
        case: what was computed, e.g. 'backward roberta-large T128 R8 S32 bfloat16'.
        provider: who computed it.
        status: 'ok', or why there is no time: 'out of memory', 'unavailable: …', 'failed: …', 'wrong: …'.
        gate: the correctness tests on this device: 'green', 'red' or 'not run'.
        ms, ms_low, ms_high: median and the 20% and 80% quantiles, in milliseconds.
        repeats: samples behind them.
        bytes: least bytes that the operation must move.
        gb_per_s: ``bytes`` over ``ms``; copy_share: that over the copy bandwidth measured in the same run.
        peak_mib: peak memory in MiB, above what was allocated before, unless the section says otherwise.
        error: RMS(error)/RMS(reference) of the result.
        config: everything else as JSON.
        device, versions, commit, date: of the run.
    """

    section: str
    case: str
    provider: str
    status: str = OK
    gate: str = "not run"
    ms: float = math.nan
    ms_low: float = math.nan
    ms_high: float = math.nan
    repeats: int = 0
    bytes: int = 0
    gb_per_s: float = math.nan
    copy_share: float = math.nan
    peak_mib: float = math.nan
    error: float = math.nan
    config: dict[str, Any] = field(default_factory=dict)
    device: str = ""
    versions: str = ""
    commit: str = ""
    date: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What two runs are compared by."""
        return self.section, self.case, self.provider


COLUMNS = tuple(f.name for f in fields(Row))


def device_name(device: torch.device) -> str:
    """The device in words: the GPU's name, or the processor's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


@cache
def _processor() -> str:
    """Its name, with family and model where the system tells them: hosts give several generations one name."""
    said = processor()
    if "model name" not in said:
        return platform.processor() or platform.machine()
    kind = f" (family {said['cpu family']}, model {said['model']})" if {"cpu family", "model"} <= said.keys() else ""
    return said["model name"] + kind


@cache
def versions() -> str:
    """Versions of the packages that decide a time, as one line."""
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


@cache
def commit() -> str:
    """Short hash of the checkout, with '+' where files that are measured differ from it.

    Outside a checkout (a copy on a borrowed machine) what ``FFALORA_COMMIT`` says, or 'unknown'.
    """
    here = Path(__file__).resolve().parents[1]
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "ffalora", "kernels", "csrc"],
            cwd=here, capture_output=True, text=True,
        )  # fmt: skip
    except OSError:
        return os.environ.get("FFALORA_COMMIT", "unknown")
    if head.returncode:
        return os.environ.get("FFALORA_COMMIT", "unknown")
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def stamp(row: Row, device: torch.device) -> Row:
    """The row with device, versions, commit and date of now."""
    date = time.strftime("%Y-%m-%d")
    return Row(**asdict(row) | dict(device=device_name(device), versions=versions(), commit=commit(), date=date))


def append(path: Path, rows: list[Row]) -> None:
    """Adds rows to a CSV; a file that is not there yet gets its header."""
    extend_table(path, COLUMNS, [{name: _text(value) for name, value in asdict(row).items()} for row in rows])


def read(path: Path) -> list[Row]:
    """The rows of a CSV, oldest first; none where the file is missing.

    Raises:
        ValueError: the file's columns are not those of this schema.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} has other columns than {', '.join(COLUMNS)}; write to another file")
        return [_parse(values) for values in reader]


def latest(rows: list[Row]) -> dict[tuple[str, str, str], Row]:
    """The last row of each section, case and provider."""
    return {row.key: row for row in rows}


def latest_by_device(rows: list[Row]) -> list[Row]:
    """The last row of each section, case, provider and device."""
    return list({(*row.key, row.device): row for row in rows}.values())


def _text(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else value


def _parse(values: dict[str, str]) -> Row:
    parsed: dict[str, Any] = {}
    for f in fields(Row):
        text = values[f.name]
        if f.type == "float":
            parsed[f.name] = float(text) if text else math.nan
        elif f.type == "int":
            parsed[f.name] = int(text or 0)
        else:
            parsed[f.name] = json.loads(text) if f.name == "config" else text
    return Row(**parsed)
