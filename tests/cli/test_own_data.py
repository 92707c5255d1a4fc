"""A stranger's table in three commands: looked at, trained on privately, and used on a second file."""

import json
import shlex

import numpy as np
import pandas
import pytest
from small_runs import WORDS

from ffalora.cli import main
from ffalora.config import load_config
from ffalora.privacy.batch import efficiency, sensible_batch


def run(*arguments):
    with pytest.raises(SystemExit) as done:
        main([str(a) for a in arguments])
    return done.value.code


@pytest.fixture
def feedback(tmp_path, monkeypatch):
    """Semicolons, a byte-order mark, two text columns, classes in words (one spelt otherwise), clients, and blanks."""
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, 40, 9) for _ in range(150)]
    rows = pandas.DataFrame(
        {
            "Nr": range(150),
            "Subject": [" ".join(WORDS[i] for i in row[:3]) for row in drawn],
            "Message": [", ".join(WORDS[i] for i in row[3:]) for row in drawn],
            "Verdict": [("bad", "good")[int((row < 20).mean() > 0.5)] for row in drawn],
            "Hospital": [("St. Mary", "Charité", "Nord; Süd")[row % 3] for row in range(150)],
        }
    )
    for row, column in ((3, "Message"), (8, "Verdict"), (13, "Hospital")):
        rows.loc[row, column] = " "
    rows.loc[5, "Verdict"] = rows.loc[5, "Verdict"].upper() + " "
    rows.to_csv(tmp_path / "feedback.csv", index=False, sep=";", encoding="utf-8-sig")
    rows[["Message", "Subject"]][20:40].to_csv(tmp_path / "new.csv", index=False, encoding="cp1252")
    monkeypatch.chdir(tmp_path)
    return rows


@pytest.mark.long
def test_three_commands_lead_from_a_table_to_private_predictions(feedback, small, tmp_path, capsys):
    assert run("init", "feedback.csv") == 0
    shown = capsys.readouterr().out
    assert "150 rows, UTF-8 with a byte-order mark, semicolons between cells" in shown
    assert "2 different values in 3 spellings: bad, good" in shown and "3 clients of 49 rows" in shown
    assert "ffalora simulate feedback.yaml" in shown and "ffalora plan feedback.yaml" in shown
    tiny = ["--model.name", small().model.name, "--adapter.layers_to_transform", "[1]", "--federation.rounds", "1"]
    assert run("simulate", "feedback.yaml", "--no-progress", *tiny) == 0
    assert "ffa" in capsys.readouterr().out
    assert "ε = 5.9" in (tmp_path / "runs" / "feedback" / "privacy.txt").read_text()
    assert run("predict", "runs/feedback", "new.csv") == 0
    assert "written new-predicted.csv: 20 predictions" in capsys.readouterr().out
    assert run("predict", "runs/feedback", "new.csv", "--json", "--output", "again.csv") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["written"], said["rows"], said["skipped"], sum(said["counts"].values())) == ("again.csv", 20, 0, 20)
    table = pandas.read_csv("new-predicted.csv")
    assert len(table) == 20 and set(table["predicted"]) <= {"bad", "good"}
    assert table[["p(bad)", "p(good)"]].sum(axis=1).to_numpy() == pytest.approx(np.ones(20), abs=1e-5)


@pytest.mark.long
def test_how_a_file_is_written_can_be_said(feedback, tmp_path, capsys):
    """A table that reads as Windows-1252, and is Central European."""
    renamed = feedback.drop(columns="Hospital").rename(columns={"Subject": "Předmět"})
    renamed.to_csv("other.csv", index=False, sep="\t", encoding="cp1250")
    assert run("init", "other.csv", "--encoding", "cp1250", "--delimiter", r"\t") == 0
    assert "Předmět" in (tmp_path / "other.yaml").read_text(encoding="utf-8")
    capsys.readouterr()
    run("predict", "--help-all")
    shown = capsys.readouterr().out
    assert all(f"--data.{key} " in shown for key in ("text", "encoding", "delimiter"))
    assert "--data.max_samples" not in shown


def test_what_init_writes_is_the_configuration_that_it_showed(feedback):
    assert run("init", "feedback.csv", "--epsilon", "3") == 0
    config = load_config("feedback.yaml")
    assert config.data.text == ["Subject", "Message"] and config.data.label == "Verdict" and config.data.drop_empty
    assert (config.data.encoding, config.data.delimiter) == ("utf-8-sig", ";")
    assert (config.clients.partition, config.clients.column) == ("column", "Hospital")
    privacy = config.privacy
    assert (privacy.unit, privacy.target_epsilon, privacy.delta, privacy.noise) == ("sample", 3.0, 1e-5, "secure")
    assert config.optimizer.batch_size == sensible_batch(34, 3.0, 1e-5, 50, most=266)


def test_many_clients_spend_their_budgets_as_well_as_few(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [(f"{WORDS[i % 40]} {WORDS[i // 40 % 40]} and so on", i % 2, f"ward {i // 100}") for i in range(4000)]
    pandas.DataFrame(rows, columns=["text", "label", "client"]).to_csv("many.csv", index=False)
    assert run("init", "many.csv", "--client", "client") == 0
    config = load_config("many.yaml")
    assert efficiency(70, 6.0, config.privacy.delta, config.optimizer.batch, 50) >= 0.85


def test_without_clients_it_is_training_at_one_site(feedback, capsys):
    feedback.drop(columns="Hospital").to_csv("alone.csv", index=False)
    assert run("init", "alone.csv") == 0
    assert "ffalora train alone.yaml" in capsys.readouterr().out
    assert load_config("alone.yaml").clients.count == 1


def test_a_file_that_is_there_is_not_overwritten(feedback, capsys):
    assert run("init", "feedback.csv", "--output", "mine.yaml") == 0
    before = (feedback, open("mine.yaml").read())
    assert run("init", "feedback.csv", "--output", "mine.yaml") == 2
    assert "--overwrite" in capsys.readouterr().err and open("mine.yaml").read() == before[1]


def test_the_commands_that_init_prints_can_be_pasted(feedback, capsys):
    columns = {"Hospital": "the client's", "Verdict": "Site code"}
    feedback.assign(Team=["u", "v"] * 75).rename(columns=columns).to_csv("my own.csv", index=False)
    assert run("init", "my own.csv") == 0
    shown = capsys.readouterr().out
    commands = [shlex.split(line, comments=True) for line in shown.splitlines() if line.startswith("  ffalora ")]
    assert [command[1:] for command in commands] == [
        ["plan", "my own.yaml"],
        ["simulate", "my own.yaml"],
        ["predict", "runs/my own", "NEW.csv"],
    ]
    assert run("init", "my own.csv", "--json", "--overwrite") == 0
    assert json.loads(capsys.readouterr().out)["next"][0] == "ffalora simulate 'my own.yaml'"
    feedback.drop(columns=["Hospital"]).rename(columns={"Verdict": "a b"}).assign(x=["u", "v"] * 75).to_csv("n.csv")
    assert run("init", "n.csv") == 0
    assert "--label x --client 'a b' --overwrite" in capsys.readouterr().out


def test_predictions_that_are_there_are_not_overwritten_unless_that_is_asked_for(feedback, tmp_path, capsys):
    (tmp_path / "new-predicted.csv").write_text("the only copy")
    for arguments in ([], ["--output", "feedback.csv"]):
        assert run("predict", tmp_path, "new.csv", *arguments) == 2
        assert "exists; --overwrite replaces it, --output writes another file" in capsys.readouterr().err
    assert (tmp_path / "new-predicted.csv").read_text() == "the only copy"
    assert run("predict", tmp_path, "new.csv", "--overwrite") == 2
    assert "holds no finished adapter" in capsys.readouterr().err


@pytest.mark.long
def test_a_batch_is_halved_while_the_budget_is_still_spent_well():
    assert sensible_batch(279, 6.0, 1e-5, 50, most=10_000) == 140
    assert efficiency(279, 6.0, 1e-5, 140, 50) >= 0.85 > efficiency(279, 6.0, 1e-5, 70, 50)
    assert sensible_batch(279, 6.0, 1e-5, 50, most=50) == 35 and sensible_batch(279, 6.0, 1e-5, 50, most=3) == 3


def test_evaluate_takes_a_file_once(feedback, capsys, tmp_path):
    assert run("evaluate", tmp_path, "feedback.csv", "--data.name", "new.csv") == 2
    assert "are both given" in capsys.readouterr().err


@pytest.mark.long
def test_a_run_s_own_file_is_known_however_its_place_is_written_and_from_any_folder(
    feedback, small, tmp_path, capsys, monkeypatch
):
    run("init", "feedback.csv")
    tiny = ["--model.name", small().model.name, "--adapter.layers_to_transform", "[1]", "--federation.rounds", "1"]
    assert run("train", "feedback.yaml", "--no-progress", *tiny) == 0
    said = set()
    for place in ("feedback.csv", "./feedback.csv", str(tmp_path / "feedback.csv")):
        capsys.readouterr()
        assert run("evaluate", "runs/feedback", place, "--json") == 0
        said.add(json.loads(capsys.readouterr().out)["accuracy"])
        assert run("evaluate", "runs/feedback", place) == 0
        assert "the test split of" in capsys.readouterr().out
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for given in ([], ["../feedback.csv"], [str(tmp_path / "feedback.csv")]):
        capsys.readouterr()
        assert run("evaluate", "../runs/feedback", *given, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["rows"] == "the test split of feedback.csv"
        said.add(found["accuracy"])
    assert len(said) == 1


@pytest.mark.long
def test_a_run_is_exported_with_its_card(feedback, small, tmp_path, capsys):
    run("init", "feedback.csv", "--client", "Hospital")
    tiny = ["--model.name", small().model.name, "--adapter.layers_to_transform", "[1]", "--federation.rounds", "1"]
    assert run("simulate", "feedback.yaml", "--no-progress", *tiny) == 0
    capsys.readouterr()
    assert run("export", "runs/feedback", "--to", "shared") == 0
    shown = capsys.readouterr().out
    assert "written shared: the adapter and README.md" in shown and "name theirs with --base" in shown
    assert 'tokenizer("the first text", "the second"' in (tmp_path / "shared" / "README.md").read_text()
    assert run("export", "runs/feedback", "--to", "shared") == 2
    assert "holds something already" in capsys.readouterr().err
