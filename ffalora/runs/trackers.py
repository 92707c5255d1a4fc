"""The rounds of a run for the tools that people watch runs with: TensorBoard, Weights & Biases, MLflow, trackio.

Each is imported when the first round is written down. What they get is the row of ``metrics.jsonl``, and it stays on
this machine: in the run's folder (trackio: where it keeps all its runs) unless the tool's own environment variables say
otherwise: ``WANDB_MODE``, ``MLFLOW_TRACKING_URI``, ``TRACKIO_DIR``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ..config import Config, ConfigError


class Tracker(Protocol):
    """What takes numbers by name, one set a round."""

    def log(self, numbers: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


def check_trackers(config: Config) -> None:
    """Refuses tools that are not there, before a run begins.

    Raises:
        ConfigError: names the first of them.
    """
    for name in config.report_to:
        if find_spec(name) is None:
            raise ConfigError(f"report_to={name!r} is not installed; pip install {name}, or leave it out")


class Trackers:
    """All trackers of a run.

    Args:
        config: names them in ``report_to``; checked before (:func:`check_trackers`).
        folder: of the run; its name is the run's name.
    """

    def __init__(self, config: Config, folder: Path):
        self._config, self._folder = config, folder
        self._open: list[Tracker] | None = None

    def log(self, row: Mapping[str, Any]) -> None:
        """Hands a round's row to each of them."""
        if self._open is None:
            self._open = [_TRACKERS[name](self._config, self._folder) for name in self._config.report_to]
        numbers = flat_numbers(row)
        for tracker in self._open:
            tracker.log(numbers, int(row["round"]))

    def close(self) -> None:
        """Ends them; a later round would begin anew."""
        for tracker in self._open or []:
            tracker.close()
        self._open = None


def flat_numbers(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Finite numbers of a row by their names, those of nested mappings below a slash."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= flat_numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[prefix + name] = float(value)
    return found


class _TensorBoard:
    def __init__(self, config: Config, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _OfRun:
    """A library whose run takes mappings of numbers."""

    _run: Any

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


class _Wandb(_OfRun):
    def __init__(self, config: Config, folder: Path):
        import wandb

        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "ffalora"),
            name=folder.name,
            dir=str(folder),
            mode=mode,
            config=config.model_dump(mode="json"),
        )


class _Mlflow:
    def __init__(self, config: Config, folder: Path):
        from mlflow import MlflowClient

        own = f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", own))
        experiment = self._client.get_experiment_by_name("ffalora")
        identity = experiment.experiment_id if experiment else self._client.create_experiment("ffalora")
        self._run = self._client.create_run(identity, run_name=folder.name).info.run_id
        self._client.log_param(self._run, "config", str(config.model_dump(mode="json"))[:5000])

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            allowed = "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name)
            self._client.log_metric(self._run, allowed, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


class _Trackio(_OfRun):
    def __init__(self, config: Config, folder: Path):
        import trackio

        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "ffalora"),
            name=folder.name,
            embed=False,
            config=config.model_dump(mode="json"),
        )


_TRACKERS: dict[str, Callable[[Config, Path], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _Mlflow,
    "trackio": _Trackio,
}
