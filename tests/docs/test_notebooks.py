"""The notebooks run from top to bottom, here on tiny models and few rows; `make notebooks` runs them as they are."""

import json
import re
import shutil

import pytest
from pages import ROOT
from small_runs import save_texts
from test_generate import language_model  # noqa: F401
from test_pages import run_line

from ffalora.planning import starter

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def cells(name):
    path = ROOT / "examples" / "notebooks" / f"{name}.ipynb"
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the cells of a notebook with other parameters; returns its names, and what it left is the test's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FFALORA_LEDGERS", str(tmp_path / "ledgers"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def run(name, **parameters):
        names = {}
        for cell in cells(name):
            for part in re.split(r"^(!.*)$", "".join(cell["source"]), flags=re.MULTILINE):
                if part.startswith("!"):
                    run_line(re.sub(r"\{(\w+)\}", lambda found: str(names[found[1]]), part[1:]))
                else:
                    exec(compile(part, name, "exec"), names)
            if "parameters" in cell["metadata"].get("tags", []):
                assert set(parameters) <= set(names), "the notebook has no such parameter"
                names.update(parameters)
        return names

    return run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_shows_nothing_that_it_did_not_just_compute(path):
    whole = json.loads(path.read_text())
    assert path.stat().st_size < 10_000 and whole["nbformat"] == 4
    for cell in whole["cells"]:
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None
    assert len({cell["id"] for cell in whole["cells"]}) == len(whole["cells"])
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in whole["cells"]) == 1


def test_every_notebook_is_run_here():
    assert {path.stem for path in NOTEBOOKS} == {"demo", "own_table", "private_trainer", "private_chat"}


@pytest.fixture
def texts(tmp_path):
    return str(save_texts(tmp_path / "texts.csv"))


def test_the_demo_spends_its_epsilon_and_shows_baselines(run, small, texts, capsys):
    more = {"optimizer.batch_size": 16, "adapter.layers_to_transform": [1]}
    names = run("demo", MODEL=small().model.name, DATA=texts, ROUNDS=2, MORE=more)
    assert 5 < names["result"].summary["epsilon"] <= 6
    shown = capsys.readouterr().out
    assert "round 2: ε = " in shown and "this run" in shown and "nothing is protected" in shown


@pytest.mark.long
def test_three_commands_lead_from_a_spreadsheet_s_table_to_predictions(
    run, small, texts, tmp_path, monkeypatch, capsys
):
    for name, value in (("MODEL", small().model.name), ("TOP_LAYER", 1), ("ROUNDS", 1)):
        monkeypatch.setattr(starter, name, value)
    names = run("own_table", DATA=texts)
    shown = capsys.readouterr().out
    assert "semicolon" in shown or "';'" in shown or "delimiter" in shown
    assert "2 rows lack one of them and are left out" in shown and len(names["table"]) > 100
    assert next(tmp_path.rglob("new-predicted.csv")).read_text().count("\n") > 15


@pytest.mark.long
def test_the_private_trainer_meets_its_target(run, small, texts, tmp_path, capsys):
    names = run("private_trainer", MODEL=small().model.name, DATA=texts, STEPS=2, ROWS=120)
    assert 0 < names["trainer"].ledger.epsilon() <= 6
    assert "nothing is protected" not in capsys.readouterr().out


def test_the_chat_model_answers(run, language_model, tmp_path, capsys):  # noqa: F811
    place = shutil.copytree(language_model, tmp_path / "model")
    run("private_chat", MODEL=str(place), ROUNDS=1, ROWS=40, MORE={"federation.local_steps": 1})
    assert "round 1: ε = " in capsys.readouterr().out
