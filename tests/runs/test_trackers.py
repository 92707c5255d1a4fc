"""Rounds as other tools see them: real libraries where they are installed, and one of our own that always is."""

import json
import math

import pytest

from ffalora.config import ConfigError, load_config
from ffalora.federated.simulate import simulate
from ffalora.runs import trackers
from ffalora.runs.trackers import Trackers, flat_numbers

ROW = {
    "round": 1,
    "metrics": {"accuracy": 0.5},
    "epsilon": math.inf,
    "epsilon_per_client": {"St. Mary: A": 2.0},
    "x": None,
}


class Remembering:
    """A tracker that keeps what it is told."""

    def __init__(self, config, folder):
        self.told, self.is_open = [], True
        Remembering.last = self

    def log(self, numbers, step):
        self.told.append((step, dict(numbers)))

    def close(self):
        self.is_open = False


def test_a_row_becomes_finite_numbers_by_name():
    found = flat_numbers(ROW | {"is_it": True, "name": "x"})
    assert found == {"round": 1.0, "metrics/accuracy": 0.5, "epsilon_per_client/St. Mary: A": 2.0}


def test_every_round_of_a_run_is_told_once_also_when_it_is_resumed(small, tmp_path, monkeypatch):
    monkeypatch.setitem(trackers._TRACKERS, "tensorboard", Remembering)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    config = small(federation__rounds=2, report_to="tensorboard")
    simulate(config, tmp_path / "run", progress=False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert Remembering.last.told == [(row["round"], flat_numbers(row)) for row in rows]
    assert not Remembering.last.is_open
    first = Remembering.last
    simulate(config, tmp_path / "run", resume=True, progress=False)
    assert Remembering.last is first, "a run that was over was told again"


def test_a_tool_that_is_not_installed_is_named_before_anything_is_written(small, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="report_to='wandb' is not installed; pip install wandb"):
        simulate(small(report_to="wandb"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_the_real_tool_keeps_the_rounds_on_this_machine(name, tmp_path, monkeypatch):
    for variable in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip(name)
    run = Trackers(load_config(None, {"report_to": name}), tmp_path)
    run.log(ROW)
    run.log(ROW | {"round": 2})
    run.close()
    written = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert written & {"tensorboard", "wandb", "mlflow.db", "trackio"}
