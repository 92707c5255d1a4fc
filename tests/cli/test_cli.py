"""The command line: flags are the configuration, errors are one line and status 2, no run is lost or half-written."""

import errno
import json
import math
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import click
import pytest
from fabricated import write_run

from ffalora.cli import VERBS, choose, cli, main
from ffalora.cli.errors import explain
from ffalora.config import ConfigError, fields, load_config
from ffalora.runs.bundle import Scores

SMALL = ["--federation.rounds", "2", "--no-progress"]


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """A stand-in for ``simulate`` that writes run folders; the list of what it was called with."""
    calls = []

    def simulate(config, folder, resume=False, progress=True):
        calls.append((config, folder.resolve().relative_to(tmp_path), resume))
        write_run(config, folder)

    stand_in = types.ModuleType("ffalora.federated.simulate")
    stand_in.simulate, stand_in.RunResult = simulate, object
    monkeypatch.setitem(sys.modules, "ffalora.federated.simulate", stand_in)
    monkeypatch.delitem(sys.modules, "ffalora.federated.one_site", raising=False)
    monkeypatch.chdir(tmp_path)
    yield calls
    sys.modules.pop("ffalora.federated.one_site", None)


def run(*arguments):
    """Exit status of the command line."""
    with pytest.raises(SystemExit) as done:
        main([str(a) for a in arguments])
    return done.value.code


def ctrl_c():
    raise KeyboardInterrupt


def fail_after(monkeypatch, folders, fail):
    """Makes the stand-in write so many runs and then fail."""
    stand_in = sys.modules["ffalora.federated.simulate"]
    finish, begun = stand_in.simulate, []

    def simulate(config, folder, resume=False, progress=True):
        begun.append(folder)
        if len(begun) > folders:
            fail()
        finish(config, folder, resume, progress)

    monkeypatch.setattr(stand_in, "simulate", simulate)


def test_help_of_every_verb_answers_without_importing_torch():
    asked = [["--help"], *([verb, "--help"] for verb in VERBS)]
    code = (
        "import sys\nfrom ffalora.cli import main\n"
        f"for asked in {asked!r}:\n    try: main(asked)\n    except SystemExit as done: assert done.code == 0, asked\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_key_of_the_configuration_is_a_documented_flag(capsys):
    run("simulate", "--help-all")
    shown = capsys.readouterr().out
    assert [key for key in fields() if f"--{key} " not in shown] == []
    assert "optimizer: The local optimiser" in shown and "[15]" in shown


def test_help_opens_with_the_keys_that_most_people_set_and_fits_a_screen(capsys):
    run("simulate", "-h")
    shown = capsys.readouterr().out
    assert "--privacy.target_epsilon NUMBER" in shown and "--privacy.accountant" not in shown
    assert shown.index("--data.name") < shown.index("--output") and len(shown.splitlines()) < 45
    run("predict", "-h")
    assert "Often set" not in capsys.readouterr().out


def test_flags_reach_the_run_as_typed_values(trained):
    assert run("simulate", *SMALL, "--optimizer.lr", "1e-3", "--adapter.target_modules", "[query, key]",
               "--data.label", "no", "--model.compile", "true", "--adapter.layers_to_transform=[0,1]",
               "--data.max_samples", "null") == 0  # fmt: skip
    config = trained[0][0]
    assert (config.optimizer.lr, config.adapter.target_modules, config.federation.rounds) == (1e-3, ["query", "key"], 2)
    assert (config.model.compile, config.adapter.layers_to_transform, config.data.max_samples) == (True, [0, 1], None)


def test_a_text_flag_is_never_read_as_a_number_or_a_truth_value(trained):
    assert run("simulate", *SMALL, "--data.name", "no", "--device", "1") == 0
    assert (trained[0][0].data.name, trained[0][0].device) == ("no", "1")


@pytest.mark.long
@pytest.mark.parametrize("column", ["Comment #1", "#text", "2024", "no", "a: b"])
def test_a_column_keeps_its_name(column, trained):
    assert run("simulate", *SMALL, "--data.text", column, "--data.delimiter", r"\t") == 0
    assert (trained[0][0].data.text, trained[0][0].data.delimiter) == ([column], "\t")


def test_columns_are_a_list_in_yaml_or_one_in_quotes(trained):
    assert run("simulate", *SMALL, "--data.text", "[a, 'b']", "--data.label_texts", "{no: [bad], 01: [good]}") == 0
    assert trained[0][0].data.text == ["a", "b"]
    assert trained[0][0].data.label_texts == {"no": ["bad"], "01": ["good"]}
    assert run("simulate", *SMALL, "--data.text", "'a #1'") == 0
    assert trained[1][0].data.text == ["a #1"]


def test_several_methods_and_seeds_each_get_a_folder_and_one_report(trained, tmp_path, capsys):
    assert (
        run("demo", *SMALL, "--seeds", 2, "--seed", 5, "--methods.ffa.optimizer.lr", 3, "--output", tmp_path / "d") == 0
    )
    assert [str(folder) for _, folder, _ in trained] == [
        "d/ffa/seed-5",
        "d/lora/seed-5",
        "d/fedsvd/seed-5",
        "d/ffa/seed-6",
        "d/lora/seed-6",
        "d/fedsvd/seed-6",
    ]
    assert [config.seed for config, _, _ in trained] == [5, 5, 5, 6, 6, 6]
    assert [config.adapter.seed for config, _, _ in trained] == [0, 0, 0, 1, 1, 1], "repeats share a frozen factor"
    assert trained[0][0].optimizer.lr == 3.0 and trained[0][0].federation.strategy == "ffa"
    assert (tmp_path / "d/report.html").exists() and (tmp_path / "d/plots/metric.png").exists()
    table = capsys.readouterr().out
    assert "ffa" in table and "lora" in table and "±" in table and "report" in table


def test_the_language_model_s_demo_trains_its_own_configuration_and_is_resumed_by_the_command_it_prints(
    trained, tmp_path, capsys, monkeypatch
):
    with monkeypatch.context() as patch:
        fail_after(patch, 1, ctrl_c)
        assert run("demo", "--lm", *SMALL, "--output", tmp_path / "d") == 130
    again = next(line for line in capsys.readouterr().err.splitlines() if line.strip().startswith("ffalora")).split()[
        1:
    ]
    assert run(*again, "--no-progress") == 0
    assert [str(folder) for _, folder, _ in trained] == ["d/ffa", "d/ffa", "d/lora"]
    config = trained[0][0]
    assert (config.data.task, config.data.name, config.privacy.target_epsilon) == ("causal-lm", "news-sections", 8.0)


@pytest.mark.long
@pytest.mark.parametrize("best,said", [(0.1, "points above"), (1.0, "NOT above a trivial baseline")])
def test_a_report_says_of_each_run_whether_it_was_worth_it(best, said, trained, tmp_path, capsys):
    run("simulate", *SMALL, "--output", tmp_path / "r")
    rows = [
        {"name": name, "accuracy": accuracy, "epsilon": 0.0, "is_bound": False, "about": "…"}
        for name, accuracy in (("majority", 0.05), ("means", best))
    ]
    (tmp_path / "r/baselines.json").write_text(json.dumps(rows))
    capsys.readouterr()
    assert run("report", tmp_path / "r") == 0
    assert said in capsys.readouterr().out.splitlines()[-1]


def test_a_second_run_never_lands_in_the_first_ones_folder(trained):
    for _ in range(2):
        assert run("simulate", *SMALL) == 0
    assert [str(folder) for _, folder, _ in trained] == ["runs/simulate", "runs/simulate-2"]


def test_a_folder_that_holds_a_run_is_refused_without_resume(trained, tmp_path, capsys):
    run("simulate", *SMALL, "--output", tmp_path / "r")
    before = (tmp_path / "r/metrics.jsonl").read_bytes()
    assert run("simulate", *SMALL, "--seed", 9, "--output", tmp_path / "r") == 2
    assert "--resume" in capsys.readouterr().err and (tmp_path / "r/metrics.jsonl").read_bytes() == before
    assert load_config(tmp_path / "r/config.yaml").seed == 0


def test_ctrl_c_exits_130_and_the_command_it_prints_continues(trained, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        fail_after(patch, 1, ctrl_c)
        assert run("demo", *SMALL, "--output", tmp_path / "d") == 130
    said = capsys.readouterr().err
    again = next(line for line in said.splitlines() if line.strip().startswith("ffalora")).split()[1:]
    assert run(*again, "--no-progress") == 0
    assert [(str(folder), resume) for _, folder, resume in trained] == [
        ("d/ffa", False),
        ("d/ffa", True),
        ("d/lora", True),
        ("d/fedsvd", True),
    ]
    assert trained[0][0] == trained[1][0]


def test_resume_refuses_another_configuration_and_names_what_differs(trained, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("optimizer: {lr: 2}\nfederation: {rounds: 2}\n")
    run("simulate", "c.yaml", "--output", "r")
    assert run("simulate", "c.yaml", "--output", "r", "--resume") == 0
    assert run("simulate", "c.yaml", "--output", "r", "--resume", "--optimizer.lr", 3) == 2
    assert "optimizer.lr was 2.0 and is 3.0" in capsys.readouterr().err
    assert load_config(tmp_path / "r/config.yaml").optimizer.lr == 2.0
    assert run("simulate", "--resume") == 2 and run("simulate", "--resume", "--output", "absent") == 2


def test_training_at_one_site_resumes_with_the_command_that_began_it(trained, tmp_path):
    (tmp_path / "c.yaml").write_text("clients: {partition: labels, proportions: [[0.1, 0.9], [0.9, 0.1]]}\n")
    for resume in ([], ["--resume"]):
        assert run("train", "c.yaml", *SMALL, "--output", "t", *resume) == 0
    assert trained[0][0].clients.count == 1 and trained[0][0].clients.proportions is None


def test_a_run_that_cannot_begin_leaves_no_folder(trained, monkeypatch):
    fail_after(monkeypatch, 0, lambda: load_config(None, {"adapter.rank": 0}))
    assert run("demo", *SMALL, "--output", "out/d") == 2
    assert not Path("out/d").exists()


def test_a_run_that_fails_later_keeps_what_it_wrote(trained, monkeypatch):
    fail_after(monkeypatch, 1, lambda: [][0])
    with pytest.raises(IndexError):
        main(["demo", *SMALL, "--output", "d"])
    assert Path("d/ffa/metrics.jsonl").exists() and Path("d/config.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["simulate", "--adapter.rank", "0"], "adapter.rank=0: must be at least 1"),
        (["simulate", "--optimizer.lrr", "1"], "--optimizer.lr"),
        (["simulate", "--adapter.target_modules", "[a"], "--adapter.target_modules '[a'"),
        (["simulate", "--privacy.target_epsilon", "6"], "unit='none' adds no noise"),
        (["simulate", "absent.yaml"], "absent.yaml"),
        (["simulate", "--methods.ffa.optimizer.lr"], "requires an argument"),
        (
            ["epsilon", "--dataset-size", "10", "--batch-size", "20", "--steps", "5", "--target-epsilon", "6"],
            "batch_size",
        ),
        (["epsilon", "--dataset-size", "10"], "--target-epsilon"),
        (["report", "."], "holds no completed round"),
        (["data", "fetch", "absent"], "all-MiniLM-L6-v2"),
        (["data", "fetch"], "--all"),
        (["predict", ".", "one", "--pairs"], "two by two"),
        (["export", ".", "--to", "new"], "holds no finished adapter"),
        (["generate", ".", "one", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(arguments, part, trained, capsys, tmp_path):
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert part in said and "Traceback" not in said
    assert not any(tmp_path.iterdir()) and trained == []


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    def fails(*_):
        return {}["absent"]

    monkeypatch.setattr("ffalora.report.read_runs", fails)
    with pytest.raises(KeyError):
        main(["report", "."])


def test_only_refusals_by_our_own_code_are_taken_for_the_users_mistakes(tmp_path):
    def caught(call):
        with pytest.raises(Exception) as error:
            call()
        return error.value

    assert explain(caught(lambda: load_config("/absent.yaml"))).startswith("cannot read")
    (tmp_path / "own.csv").write_text('text;label\n"a: b";x: y: z\n')
    assert "`ffalora init" in explain(caught(lambda: load_config(tmp_path / "own.csv")))
    assert explain(caught(lambda: int("x"))) is None  # a ValueError, but Python's own
    assert explain(caught(lambda: open("/absent/file"))) == "/absent/file: No such file or directory"
    assert "make room" in explain(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))  # as pandas says it, without a name
    assert "Traceback" not in explain(caught(lambda: load_config(None, {"a": 1})))


def test_traceback_flag_shows_the_whole_of_it():
    with pytest.raises(ConfigError):
        main(["--traceback", "simulate", "--adapter.rank", "0"])


def test_epsilon_answers_both_ways_with_all_accountants(capsys):
    terms = ["epsilon", "--dataset-size", "2700", "--batch-size", "64", "--steps", "75"]
    assert run(*terms, "--target-epsilon", "6") == 0
    rows = {line.split()[0]: [float(v) for v in line.split()[1:3]] for line in capsys.readouterr().out.splitlines()[1:]}
    assert set(rows) == {"rdp", "prv", "pld"} and all(5.9 < epsilon <= 6 for _, epsilon in rows.values())
    assert run(*terms, "--noise-multiplier", rows["pld"][0]) == 0
    back = {line.split()[0]: float(line.split()[2]) for line in capsys.readouterr().out.splitlines()[1:]}
    assert back["pld"] == pytest.approx(rows["pld"][1], abs=2e-3) and back["rdp"] > back["pld"]


def test_epsilon_says_what_a_private_choice_and_a_sweep_would_cost(capsys):
    terms = ["epsilon", "--dataset-size", "2700", "--batch-size", "64", "--steps", "75", "--noise-multiplier", "2"]
    assert run(*terms, "--trials", "10") == 0
    chosen, swept = map(float, re.findall(r"ε = ([\d.]+)", capsys.readouterr().out.splitlines()[-1]))
    assert 1 < chosen < swept
    assert run(*terms, "--trials", "0.5") != 0


def test_epsilon_prints_a_data_sets_ledger_and_sets_its_budget(capsys):
    assert run("epsilon", "--ledger", "patients", "--target-epsilon", "8", "--delta", "1e-6") == 0
    assert "Budget: ε = 8 at δ = 1e-06" in capsys.readouterr().out
    assert run("epsilon", "--ledger", "patients") == 0
    assert "no run yet" in capsys.readouterr().out
    assert run("epsilon", "--ledger", "patients", "--steps", "3") == 2
    assert run("epsilon", "--ledger", "patients", "--trials", "3") == 2
    assert run("epsilon", "--ledger", "patients", "--sampling", "shuffle") == 2
    assert run("epsilon", "--ledger", "patients", "--delta", "1e-6") == 2


def test_a_misspelt_ledger_is_no_ledger_on_which_nothing_was_spent(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FFALORA_LEDGERS", str(tmp_path / "ledgers"))
    assert run("epsilon", "--ledger", "patients", "--target-epsilon", "8") == 0
    assert "new ledger" in capsys.readouterr().err
    assert run("epsilon", "--ledger", "patiens") == 2
    assert "no such ledger" in (said := capsys.readouterr().err) and "there are patients" in said
    assert [path.name for path in (tmp_path / "ledgers").iterdir()] == ["patients"]


def test_the_ledger_flag_is_a_key_of_the_configuration(trained):
    assert run("simulate", "--ledger", "patients", *SMALL) == 0
    assert trained[0][0].privacy.ledger == "patients"


def test_predict_and_evaluate_print_what_the_adapter_answers(monkeypatch, tmp_path, capsys):
    asked = []

    def predict(folder, texts, overrides):
        asked.append((texts, overrides))
        return [{"label": "positive", "probabilities": {"negative": 0.1, "positive": 0.9}} for _ in texts]

    stand_in = types.ModuleType("ffalora.runs.bundle")
    scores = Scores({"accuracy": 0.75, "loss": 0.5}, 40, "all of new.csv that is test data")
    stand_in.predict, stand_in.evaluate = predict, lambda folder, overrides, by: scores
    monkeypatch.setitem(sys.modules, "ffalora.runs.bundle", stand_in)
    assert run("predict", tmp_path, "fine", "good", "--device", "cpu") == 0
    assert capsys.readouterr().out.splitlines() == ["positive\t0.900\tfine", "positive\t0.900\tgood"]
    assert run("predict", tmp_path, "q", "p", "--pairs", "--json") == 0
    assert json.loads(capsys.readouterr().out)["text"] == ["q", "p"]
    assert asked == [(["fine", "good"], {"device": "cpu"}), ([("q", "p")], {})]
    assert run("evaluate", tmp_path, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said.pop("intervals") == {"accuracy": [pytest.approx(0.5981, abs=1e-4), pytest.approx(0.8581, abs=1e-4)]}
    assert said == {"accuracy": 0.75, "loss": 0.5, "samples": 40, "rows": "all of new.csv that is test data"}
    assert run("evaluate", tmp_path) == 0
    assert capsys.readouterr().out.splitlines() == [
        "accuracy  0.7500  95% [0.5981, 0.8581]",
        "loss      0.5000",
        "40 rows: all of new.csv that is test data",
    ]


def test_numbers_that_are_not_finite_are_printed_as_json_that_every_reader_takes(monkeypatch, tmp_path, capsys):
    stand_in = types.ModuleType("ffalora.runs.bundle")
    scores = Scores({"mse": math.nan, "loss": math.inf}, 4, "all of new.csv", {"a": {"rows": 4, "mse": math.nan}})
    stand_in.evaluate = lambda folder, overrides, by: scores
    stand_in.predict = lambda folder, texts, overrides: [{"value": math.nan}]
    monkeypatch.setitem(sys.modules, "ffalora.runs.bundle", stand_in)
    assert run("evaluate", tmp_path, "--json") == 0
    said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (said["mse"], said["loss"], said["by_group"]) == ("nan", "infinity", {"a": {"rows": 4, "mse": "nan"}})
    assert run("predict", tmp_path, "fine", "--json") == 0
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["value"] == "nan"


@pytest.mark.parametrize("texts", [[""], ["fine", " "]])
def test_an_empty_text_is_refused_as_one_and_not_as_a_folder(tmp_path, capsys, texts):
    assert run("predict", tmp_path, *texts) == 2
    assert "a text is empty, which has no label; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["study", "alpha", "--budget", "nan"], ["plan", "--seconds", "nan"]])
def test_no_range_of_numbers_holds_nan(arguments, capsys):
    assert run(*arguments) == 2
    assert "nan is not in the range x" in capsys.readouterr().err


@pytest.mark.parametrize("names", [["notes"], ["folder"], ["gone.csv"], ["new.csv", "new.csv"]])
def test_the_name_of_a_file_is_not_labelled_as_a_text(tmp_path, monkeypatch, capsys, names):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("notes", "new.csv"):
        (tmp_path / name).write_text("text,label\nfine,1\n")
    assert run("predict", tmp_path, *names) == 2
    said = (
        f"there is no file {names[0]!r}" if names == ["gone.csv"] else f"{names[0]!r} is no table, or not the only one"
    )
    assert said in capsys.readouterr().err


def test_every_verb_is_a_command_with_a_line_of_help():
    context = click.Context(cli)
    assert {verb: bool(cli.get_command(context, verb).get_short_help_str()) for verb in VERBS} == dict.fromkeys(
        VERBS, True
    )


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("si", "simulate"), ("simulate --optimizer.l", "--optimizer.lr"), ("evaluate --da", "--data.name")],
)
def test_shells_complete_verbs_and_keys(typed, completed, monkeypatch, capsys):
    words = ["ffalora", *typed.split(" ")]
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setenv("_FFALORA_COMPLETE", "bash_complete")
    run()
    assert f"plain,{completed}" in capsys.readouterr().out.splitlines()


def test_an_interrupted_choice_says_what_continues_it(monkeypatch, tmp_path, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ffalora.planning.choice.choose", interrupted)
    monkeypatch.chdir(tmp_path)
    tried = ["--try", "optimizer.lr=0.00001,1", "--try", "privacy.head_share=null,0.9"]
    asked = ["choose", *tried, "--one-site", "--privacy.unit", "sample", "--privacy.target_epsilon", "6"]
    assert run(*asked, "--output", "out") == 130
    again = shlex.split(capsys.readouterr().err.splitlines()[-1])[2:]
    begun, continued = (choose.command.make_context("choose", list(words)).params for words in (tried, again))
    assert continued["one_site"] and continued["tried"] == begun["tried"]
    assert run("choose", "--try", "optimizer.lr=1", "--try", "optimizer.lr=2", "--output", "other") == 2
    assert "--try optimizer.lr=A,B" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_how_many_trials_a_choice_has_is_said_by_trials_alone_and_stays(trained, tmp_path, capsys):
    config = "privacy: {unit: sample, target_epsilon: 6, trials: 10}"
    (tmp_path / "mine.yaml").write_text(config)
    tried = ["choose", "--try", "optimizer.lr=0.5,1"]
    assert run(*tried, "mine.yaml", "--output", "out") == 2
    assert "privacy.trials=10 is what --trials sets" in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text(config)
    assert run(*tried, "--trials", "20", "--resume", "--output", "begun") == 2
    assert "privacy.trials was 10.0 and is 20.0" in capsys.readouterr().err and not trained
