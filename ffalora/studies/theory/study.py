"""LoRA and FFA-LoRA trained side by side, with the measurements of this folder taken every few rounds.

One file a method and seed, ``METHOD/seed-N/theory.jsonl``, is written round by round; a method that is complete is read
back, one that is not is run again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...config import Config, ConfigError, load_config, to_yaml
from ...federated.checks import find_strategy
from ...files.atomic import write_atomically
from ...files.numbers import restored, to_json
from ...report.plots import Plot
from ...report.tables import Table
from ...runs.folder import repeated
from .answers import answer
from .measurements import Effort, Measurements
from .plots import Rows

RESULT, CONFIG = "theory.jsonl", "config.yaml"
_LAPTOP: dict[str, Any] = {
    "seeds": 5,
    "model.dtype": "float32",
    "model.packed": False,
    "privacy.accountant": "rdp",
    "privacy.noise": "seeded",
    "federation.rounds": 10,
    "federation.evaluate_every": 10,
    "data.max_evaluation_samples": 32,
}
_SMOKE: dict[str, Any] = {
    "seeds": 1,
    "federation.rounds": 5,
    "federation.local_steps": 1,
    "data.max_samples": 300,
    "optimizer.batch_size": 16,
    "privacy.max_grad_norm": 0.02,  # noise on the mean as with the demo's batch
}


@dataclass(frozen=True)
class TheoryResult:
    """What the measurements say.

    Attributes:
        tables, plots: for a page.
        verdicts: one sentence a question, with 95% intervals over seeds, each of which draws ``a`` anew.
        rows: by (method, seed), one row a round, as in the files; the last one has the run's ``seconds``.
    """

    tables: list[Table]
    plots: list[Plot]
    verdicts: list[str]
    rows: dict[tuple[str, int], Rows]

    @property
    def seconds(self) -> float:
        """Training and measuring, all runs together."""
        return sum(rows[-1]["seconds"] for rows in self.rows.values())


def theory_config(smoke: bool = False, overrides: Mapping[str, Any] | None = None) -> Config:
    """FFA-LoRA and LoRA as the paper writes them, with what the measurements need (a float32 base).

    Args:
        smoke: for a run under a minute.
        overrides: dotted keys that are to be otherwise.
    """
    with resources.as_file(resources.files(__package__) / "base.yaml") as path:
        return load_config(path, _LAPTOP | (_SMOKE if smoke else {}) | dict(overrides or {}))


def measure(config: Config, folder: Path, progress: bool = True, effort: Effort | None = None) -> TheoryResult:
    """Runs every method of ``config`` with every seed, measures, and answers.

    Args:
        config: with ``methods`` (or one method); strategies ffa and lora, SGD in the paper's units without momentum,
            float32 base.
        folder: made if missing; what is complete there is read back.
        progress: show a bar with the time left.
        effort: how much is measured and how often; by default twice in the run, and at its start.

    Raises:
        ConfigError: a method that the formulas do not describe, or a folder with results of another configuration.
    """
    effort = effort or Effort.of(config)
    runs = config.runs()
    for name, run in runs.items():
        _check_described(name, run)
    wanted = {
        (name, config.seed + repeat): repeated(run, repeat)
        for repeat in range(config.seeds)
        for name, run in runs.items()
    }
    rows: dict[tuple[str, int], Rows] = {}
    with tqdm(
        total=sum(run.federation.rounds for run in wanted.values()), desc="theory", unit="round", disable=not progress
    ) as bar:
        for (name, seed), run in wanted.items():
            place = folder / name / f"seed-{seed}"
            found = _completed(place, run, effort)
            if found is None:
                found = _run(run, place, effort, bar)
            else:
                bar.update(run.federation.rounds)
            rows[name, seed] = found
    tables, plots, verdicts = answer(rows, config)
    return TheoryResult(tables, plots, verdicts, rows)


def _run(config: Config, place: Path, effort: Effort, bar: Any) -> Rows:
    place.mkdir(parents=True, exist_ok=True)
    write_atomically(place / CONFIG, _described(config, effort).encode())
    measurements = Measurements(config, effort)
    rows = [measurements.before()]
    while measurements.server.round < config.federation.rounds:
        rows.append(measurements.next_round())
        write_atomically(place / RESULT, "".join(to_json(row) + "\n" for row in rows).encode())
        bar.update()
    return _read(place)


def _read(place: Path) -> Rows:
    """The rows; the last one with the time from the configuration's file to its own."""
    rows = [restored(json.loads(line)) for line in (place / RESULT).read_text(encoding="utf-8").splitlines()]
    if rows:
        seconds = (place / RESULT).stat().st_mtime - (place / CONFIG).stat().st_mtime
        rows[-1]["seconds"] = round(seconds, 1)
    return rows


def _completed(place: Path, config: Config, effort: Effort) -> Rows | None:
    """The rows of a finished method; None where there is none yet.

    Raises:
        ConfigError: the folder holds another configuration's.
    """
    if not (place / RESULT).exists():
        return None
    if (place / CONFIG).read_text(encoding="utf-8") != _described(config, effort):
        raise ConfigError(f"{place} holds measurements of another configuration; choose another folder or remove it")
    rows = _read(place)
    return rows if rows and rows[-1]["round"] == config.federation.rounds else None


def _described(config: Config, effort: Effort) -> str:
    return f"{to_yaml(config)}# {effort}\n"


def _check_described(name: str, config: Config) -> None:
    """Refuses what the formulas are not about."""
    federation, optimizer, privacy = config.federation, config.optimizer, config.privacy
    wanted: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
        "federation.strategy": (federation.strategy, ("ffa", "lora")),
        "federation.server_optimizer": (federation.server_optimizer, ("fedavg",)),
        "federation.server_lr": (federation.server_lr, (1.0,)),
        "federation.participation": (federation.participation, (1.0,)),
        "federation.dropout_rate": (federation.dropout_rate, (0.0,)),
        "federation.straggler_rate": (federation.straggler_rate, (0.0,)),
        "federation.robust_mean": (federation.robust_mean, (None,)),
        "federation.prox_mu": (federation.prox_mu, (0.0,)),
        "optimizer.name": (optimizer.name, ("sgd",)),
        "optimizer.normalize": (optimizer.normalize, (False,)),
        "optimizer.momentum": (optimizer.momentum, (0.0,)),
        "optimizer.weight_decay": (optimizer.weight_decay, (0.0,)),
        "model.dtype": (config.model.dtype, ("float32",)),
        "privacy.unit": (privacy.unit, ("none", "sample")),
        "privacy.mechanism": (privacy.mechanism, ("independent",)),
        "privacy.clipping": (privacy.clipping, ("flat", "per-layer", "automatic")),
        "privacy.noise": (privacy.noise, ("auto", "seeded")),
    }
    find_strategy(federation.strategy)
    for key, (value, allowed) in wanted.items():
        if value not in allowed:
            raise ConfigError(
                f"{name}: {key}={value!r} is outside what the measurements describe; use "
                f"{' or '.join(repr(each) for each in allowed)}"
            )
