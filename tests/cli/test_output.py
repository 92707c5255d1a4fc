"""What is printed: nothing where quiet was asked for, one JSON object where that was."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ffalora.cli import VERBS, main
from ffalora.config import to_yaml

ROOT = Path(__file__).parents[2]
#: This checkout's packages, whichever is installed.
HERE = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}


@pytest.fixture
def config(small, tmp_path, monkeypatch):
    """A small run's configuration in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "")  # put back after the test
    (tmp_path / "small.yaml").write_text(to_yaml(small(federation__rounds=1)))
    return tmp_path / "small.yaml"


def run(*arguments):
    with pytest.raises(SystemExit) as done:
        main([str(each) for each in arguments])
    return done.value.code


@pytest.mark.parametrize("verb", ["simulate", "train"])
def test_a_run_prints_one_object(verb, config, capsys):
    extra = ["--clients.count", "1"] if verb == "train" else []
    assert run(verb, config, "--json", *extra) == 0
    found = json.loads(capsys.readouterr().out)
    summary = json.loads((config.parent / "runs" / "small" / "summary.json").read_text())
    assert found["runs"] == [
        {"label": "ffa", "metrics": summary["metrics"], "epsilon": None, "rounds": 1, "seed": 0}
    ] and found["report"].endswith("report.html")
    assert run("report", "runs/small", "--json") == 0
    assert json.loads(capsys.readouterr().out)["runs"] == found["runs"]


def test_quiet_before_or_after_the_verb_prints_nothing_and_does_the_same(config):
    for i, words in enumerate((["--quiet", "simulate"], ["simulate", "--quiet"])):
        command = [sys.executable, "-W", "ignore", "-m", "ffalora", *words, str(config), "--output", f"runs/{i}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=HERE)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "" and "|" not in done.stderr, done.stderr
        assert (config.parent / "runs" / str(i) / "report.html").exists()


def test_quiet_keeps_errors_and_texts_after_the_double_dash(config, capsys):
    assert run("--quiet", "simulate", config, "--federation.rounds", "0") == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "federation.rounds" in shown.err
    assert run("predict", config.parent, "--", "--quiet") == 2
    assert "holds no adapter" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_quiet(verb, config, capsys):
    assert run(verb, "--help", "--quiet") == 0
    assert capsys.readouterr().out == ""
