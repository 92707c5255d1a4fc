"""Files of a run as others read them: what cannot be read is left out, and named."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import Required, TypedDict

from ..config import Config, ConfigError, load_config
from ..files.numbers import restored
from .folder import ANSWERS, BASELINES, ENVIRONMENT, METRICS, SUMMARY, UNTRAINED_ANSWERS, rows_of

CONFIG, PARTITION = "config.yaml", "partition.json"
#: The privacy statement as text and as values.
STATEMENT, PROMISE = "privacy.txt", "privacy.json"


class _Evaluated(TypedDict, total=False):
    rows: int | None


class _Client(TypedDict, total=False):
    client: Required[str]
    classes: dict[str, int]


class _Baseline(TypedDict, total=False):
    name: Required[str]
    about: Required[str]
    epsilon: Required[float | None]
    is_bound: Required[bool]
    accuracy: float
    metrics: dict[str, float]


class _Summary(TypedDict, total=False):
    epsilon: float | None
    evaluated: _Evaluated | None
    metrics: dict[str, float]
    baselines: list[_Baseline]


class _Promise(TypedDict, total=False):
    private: Required[bool]
    simulation: bool


class _Environment(TypedDict, total=False):
    packages: dict[str, Any]


class _Answer(TypedDict):
    prompt: str
    answer: str
    reference: str


#: What each file holds, as far as it is read; any other shape is damage.
_SHAPES: Mapping[str, TypeAdapter[Any]] = {
    SUMMARY: TypeAdapter(_Summary),
    PARTITION: TypeAdapter(list[_Client]),
    ENVIRONMENT: TypeAdapter(_Environment),
    PROMISE: TypeAdapter(_Promise),
    BASELINES: TypeAdapter(list[_Baseline]),
    ANSWERS: TypeAdapter(list[_Answer]),
    UNTRAINED_ANSWERS: TypeAdapter(list[_Answer]),
}

#: Keys that every run's configuration has, the last ones among them.
_WRITTEN = {"model", "data", "federation", "privacy", "methods"}


@dataclass
class RunFiles:
    """The files of one run.

    Attributes:
        folder: of the run.
        unreadable: names of those that are damaged, as far as they were asked for, with the lines of rows.
    """

    folder: Path
    unreadable: list[str] = field(default_factory=list)

    def config(self, otherwise: Config | None = None) -> Config:
        """The run's own configuration; ``otherwise`` where it is missing or damaged.

        Raises:
            ConfigError: it is, and there is none otherwise.
        """
        path = self.folder / CONFIG
        if otherwise is not None and not path.exists():
            return otherwise
        try:
            found = load_config(path)
            if not found.model_fields_set >= _WRITTEN:  # cut off, where what is left is a configuration, too
                raise ConfigError("it is not whole")
            return found
        except ConfigError as error:
            if otherwise is None:
                raise ConfigError(
                    f"{path} is damaged, or of another version ({error}); put a copy of it in its place, or leave "
                    "this run out"
                ) from None
            self.unreadable.append(CONFIG)
            return otherwise

    def rows(self) -> list[dict[str, Any]]:
        """Rows of the rounds so far."""
        rows, damaged = self._read(METRICS, rows_of, ([], []))
        if damaged:
            lines = ", ".join(map(str, damaged))
            self.unreadable.append(f"{METRICS} (line{'s' if len(damaged) > 1 else ''} {lines})")
        return rows

    def json(self, name: str, missing: Any) -> Any:
        """What a file of ``_SHAPES`` holds; ``missing`` where it is not there or damaged."""

        def parsed(content: bytes) -> Any:
            value = restored(json.loads(content))
            _SHAPES[name].validate_python(value, strict=True)
            return value

        return self._read(name, parsed, missing)

    def text(self, name: str) -> str:
        """The file's text; empty where it is not there or damaged."""
        return self._read(name, bytes.decode, "")

    def epsilon(self, rows: list[dict[str, Any]], summary: Mapping[str, Any]) -> float | None:
        """The largest client's ε: the summary's, which may state more than the last row (what clients spent in rounds
        that failed), else the last row's. None without privacy, where not all clients report theirs, and where what was
        written last cannot be read.

        Args:
            rows, summary: as they were read here; the summary is empty until the run is over.
        """
        if "epsilon" in summary:
            return summary["epsilon"]
        damaged = any(name.startswith((SUMMARY, METRICS)) for name in self.unreadable)
        return None if damaged or not rows else rows[-1]["epsilon"]

    def _read(self, name: str, parse: Callable[[bytes], Any], missing: Any) -> Any:
        path = self.folder / name
        if not path.exists():
            return missing
        try:
            return parse(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            self.unreadable.append(name)
            return missing
