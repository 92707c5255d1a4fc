"""What is printed: nothing where quiet was asked for, one JSON object where that was."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ffalora.audits.audit import Audit
from ffalora.cli import VERBS, cli, main
from ffalora.config import to_yaml
from ffalora.data.embedded import EMBEDDED
from ffalora.federated.profile import PARTS, Profile
from ffalora.planning.measure import Cost
from ffalora.planning.plan import Plan, Plans

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


@pytest.mark.long
@pytest.mark.parametrize("verb", ["simulate", "train"])
def test_a_run_prints_one_object(verb, config, capsys):
    extra = ["--clients.count", "1"] if verb == "train" else []
    assert run(verb, config, "--json", *extra) == 0
    found = json.loads(capsys.readouterr().out)
    summary = json.loads((config.parent / "runs" / "small" / "summary.json").read_text())
    assert found["runs"] == [
        {"label": "ffa", "metrics": summary["metrics"], "epsilon": None, "rounds": 1, "seed": 0, "unreadable": []}
    ] and found["report"].endswith("report.html")
    assert run("report", "runs/small", "--json") == 0
    assert json.loads(capsys.readouterr().out)["runs"] == found["runs"]


def verbs_and_their_own():
    """Every command, those of ``data`` each."""
    for name in VERBS:
        command = cli.get_command(None, name)
        yield from getattr(command, "commands", {name: command}).values()


def test_every_verb_prints_json_where_that_is_asked_for_but_the_schema_which_is_json_and_a_site_which_stays():
    lacking = {c.name for c in verbs_and_their_own() if "--json" not in {o for p in c.params for o in p.opts}}
    assert lacking == {"schema", "site"}


def said(capsys, *arguments, status=0):
    assert run(*arguments, "--json") == status
    return json.loads(capsys.readouterr().out)


def test_a_look_at_a_table_is_one_object(config, capsys):
    Path("own.csv").write_text("note;verdict\n" + "a fine day today;good\nit rained all week;bad\n" * 30)
    found = said(capsys, "init", "own.csv")
    assert (found["text"], found["label"], found["sizes"]) == (["note"], "verdict", [60])
    assert found["next"] == ["ffalora train own.yaml", "ffalora predict runs/own NEW.csv"]
    assert run("init", "own.csv") == 2 and "--overwrite" in capsys.readouterr().err
    assert said(capsys, "init", "own.csv", "--overwrite", "--epsilon", "3")["written"] == "own.yaml"
    assert "target_epsilon: 3 " in Path("own.yaml").read_text()


def test_epsilon_and_ledgers_are_one_object(config, capsys, monkeypatch):
    monkeypatch.setenv("FFALORA_LEDGERS", "ledgers")
    sizes = ["--dataset-size", "100", "--batch-size", "10", "--steps", "5", "--noise-multiplier", "2"]
    found = said(capsys, "epsilon", *sizes)["runs"]
    assert {row["accountant"] for row in found} == {"rdp", "prv", "pld"} and all(
        0 < row["epsilon"] < 2 for row in found
    )
    assert len(said(capsys, "epsilon", "--protocol", "all", "--noise-multiplier", "9")) > 2
    chosen = said(capsys, "epsilon", *sizes, "--trials", "10")
    assert chosen["runs"] == found and 0 < chosen["choice"]["chosen"] < chosen["choice"]["swept"]
    budget = said(capsys, "epsilon", "--ledger", "patients", "--target-epsilon", "4")
    assert budget["budget"] == {"epsilon": 4.0, "delta": 1e-5} and (budget["spent"], budget["entries"]) == (None, [])


def test_plan_and_profile_are_one_object(config, capsys, monkeypatch):
    plan = Plan(16, 3, 2, 1.5, 0.9, 2.0, 0.1, 4.0, 800)
    plans = Plans((40, 20), 99, plan, (), plan, Cost(0.02, 0.01, 0.1, 1000))
    monkeypatch.setattr("ffalora.planning.plan.make_plans", lambda *_: plans)
    found = said(capsys, "plan", config, "--privacy.unit", "sample", "--privacy.target_epsilon", "6")
    assert (found["target_epsilon"], found["chosen"]["sigma"], found["sizes"]) == (6, 1.5, [40, 20])
    profile = Profile(dict.fromkeys(PARTS, 1.0), 3, 48, 900, 0.1, {"peak": 10}, Path("trace.json"))
    monkeypatch.setattr("ffalora.federated.profile.profile_run", lambda *_: profile)
    found = said(capsys, "profile", config)
    assert (found["steps"], found["memory"], found["trace"]) == (3, {"peak": 10}, "trace.json")


@pytest.mark.parametrize(
    ("asked", "remedy"),
    [
        (["--drawn", "100"], "--drawn has no effect here; give --clients or --gpus"),
        (["--up", "20"], "--up has no effect here; give --clients or --gpus"),
        (["--clients", "10", "--seconds", "9"], "--seconds has no effect here; leave out --clients and --gpus"),
    ],
)
def test_plan_refuses_what_it_would_not_look_at(asked, remedy, config, capsys, monkeypatch):
    monkeypatch.setattr("ffalora.planning.plan.make_plans", lambda *_: pytest.fail("a plan was made"))
    monkeypatch.setattr("ffalora.planning.scale.measure_pace", lambda *_: pytest.fail("a plan was made"))
    assert run("plan", config, *asked) == 2 and remedy in " ".join(capsys.readouterr().err.split())


def test_an_audit_is_one_object_and_its_status_says_whether_the_claim_holds(config, capsys, monkeypatch):
    audit = Audit("one run", 3.0, 1.0, None, 0.95, 1e-7, 0.8, 1.0, 1, 100, 50, 30)
    for claimed, status in ((3.0, 0), (0.5, 1)):
        monkeypatch.setattr(
            "ffalora.audits.audit.audit_one_run", lambda *_, c=claimed: replace(audit, claimed_epsilon=c)
        )
        found = said(capsys, "audit", "--method", "one-run", "--target-epsilon", "3", status=status)
        assert found["holds"] == (status == 0) and found["audits"][0]["claimed_epsilon"] == claimed


def test_assets_are_one_object(config, capsys):
    held = {each["name"]: each["data"] for each in said(capsys, "data", "list")["assets"]}
    assert "movie-reviews" in held["vader"] and {name for data in held.values() for name in data} == set(EMBEDDED)


@pytest.mark.long
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
    assert "holds no finished adapter" in capsys.readouterr().err


def test_an_object_that_was_asked_for_is_printed_quiet_or_not(config, capsys):
    assert run("info", "--quiet", "--json") == 0
    assert "ffalora" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_quiet(verb, config, capsys):
    assert run(verb, "--help", "--quiet") == 0
    assert capsys.readouterr().out == ""
