"""The runner: nothing is run twice, values are chosen where no verdict looks, a folder belongs to one study."""

import csv
import io
import shutil
from collections import Counter

import pytest
import yaml
from small_grid import BASE, Trainer, small_grid
from small_runs import save_model, save_texts, small_config

from ffalora.config import ConfigError
from ffalora.federated import simulate as training
from ffalora.studies import runner, tuning
from ffalora.studies.budget import Budget
from ffalora.studies.folder import read_study
from ffalora.studies.grid import TUNING_SEEDS, with_seeds
from ffalora.studies.page import size_in_words
from ffalora.studies.registration import REGISTRATION, digest, read_power
from ffalora.studies.results import CELLS, MANIFEST, RESULTS, TUNING, read_csv, to_csv
from ffalora.studies.runner import run_study

REPORTED = 2 * 3 * 2  # methods, conditions, seeds
RUNS = REPORTED + 2 * 3 * 3  # and LoRA's three learning rates with three seeds for the two conditions tuned


@pytest.fixture
def trainer(monkeypatch):
    made = Trainer()
    monkeypatch.setattr(runner, "simulate_together", made)
    return made


def rows(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_every_cell_is_run_once_and_only_free_values_are_tuned(trainer, tmp_path):
    result = run_study(small_grid(), tmp_path / "study", progress=False)
    assert len(trainer.runs) == RUNS and set(trainer.runs.values()) == {1}
    assert len(rows(tmp_path / "study" / RESULTS)) == len(result.results) == 12
    assert {row["method"] for row in rows(tmp_path / "study" / TUNING)} == {"lora"}, (
        "FFA has one value: nothing to tune"
    )
    assert all(r.folder.is_relative_to(tmp_path / "study") for r in result.results)


@pytest.mark.parametrize("counts_costs", [False, True])
def test_runs_share_passes_but_for_those_whose_costs_are_read_from_the_clock(
    counts_costs, trainer, tmp_path, monkeypatch
):
    monkeypatch.setattr(runner, "step_costs", lambda config: {})
    grid = small_grid(
        tried={"ffa": {"optimizer.lr": [1, 2, 4]}}, methods={"ffa": {"federation.strategy": "ffa"}}, claims=[],
        counts_costs=counts_costs,
    )  # fmt: skip
    run_study(grid, tmp_path / "study", progress=False)
    # Three learning rates with three seeds for each of two conditions; then three conditions with two seeds, no two of
    # which may share.
    assert sorted(trainer.groups) == ([1] * 24 if counts_costs else [1] * 6 + [3] * 6)


def test_the_best_value_on_the_validation_split_is_chosen(trainer, tmp_path):
    result = run_study(small_grid(), tmp_path / "study", progress=False)
    assert dict(result.chosen["lora", "a"]) == {"optimizer.lr": 2} == dict(result.chosen["lora", "b"])
    for config in trainer.configs.values():
        assert (config.data.evaluate_on == "validation") == (config.seed in TUNING_SEEDS)
    off = [c for c in trainer.configs.values() if c.adapter.alpha == 4 and c.federation.strategy == "lora"]
    assert {c.optimizer.lr for c in off} == {8}


@pytest.mark.long
@pytest.mark.parametrize("stop_at", [1, 7, 18, 19, RUNS - 1])
def test_an_interrupted_study_goes_on_with_what_is_missing_alone(stop_at, tmp_path, monkeypatch):
    first, second = Trainer(stop_at), Trainer()
    monkeypatch.setattr(runner, "simulate_together", first)
    with pytest.raises(KeyboardInterrupt):
        run_study(small_grid(), tmp_path / "study", progress=False)
    monkeypatch.setattr(runner, "simulate_together", second)
    resumed = run_study(small_grid(), tmp_path / "study", resume=True, progress=False)
    twice = {folder for folder in first.runs if folder in second.runs}
    assert len(twice) == 1, "only the run that was interrupted goes on"
    assert len(first.runs) + len(second.runs) == RUNS + 1
    whole = run_study(small_grid(), tmp_path / "whole", progress=False)
    assert to_csv(resumed.results) == to_csv(whole.results) and resumed.chosen == whole.chosen


def test_a_finished_study_is_not_run_again(trainer, tmp_path):
    run_study(small_grid(), tmp_path / "study", progress=False)
    before = (tmp_path / "study" / RESULTS).read_text()
    again = run_study(small_grid(), tmp_path / "study", resume=True, progress=False)
    assert set(trainer.runs.values()) == {1} and (tmp_path / "study" / RESULTS).read_text() == before
    assert again.verdicts[0].seeds == 2


@pytest.mark.parametrize("content", ["{", "[]", '{"metrics": {}}'])
def test_a_damaged_summary_of_a_cell_is_named(content, trainer, tmp_path):
    result = run_study(small_grid(), tmp_path / "study", progress=False)
    (result.results[0].folder / "summary.json").write_text(content)
    with pytest.raises(ConfigError, match=r"summary\.json is damaged .*; remove the folder .* --resume runs it again"):
        run_study(small_grid(), tmp_path / "study", resume=True, progress=False)


def test_a_folder_of_another_study_is_refused(trainer, tmp_path):
    run_study(small_grid(), tmp_path / "study", progress=False)
    before = Counter(trainer.runs)
    with pytest.raises(ConfigError, match="holds a study already; give --resume"):
        run_study(small_grid(), tmp_path / "study", progress=False)
    others = [
        small_grid(BASE | {"optimizer": {"batch_size": 4}}),
        small_grid(question="Another one?"),
        with_seeds(small_grid(), 3),
    ]
    for other in others:
        with pytest.raises(ConfigError, match="another definition or configuration"):
            run_study(other, tmp_path / "study", resume=True, progress=False)
    assert trainer.runs == before


@pytest.mark.parametrize("content", ["", "a, b", "study: small"])
def test_a_folder_whose_study_cannot_be_read_is_refused_before_anything_is_run(content, trainer, tmp_path):
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(ConfigError, match=f"{MANIFEST} cannot be read; give another folder"):
        run_study(small_grid(), tmp_path, resume=True, progress=False)
    assert not trainer.runs


def test_a_wrong_cell_is_noticed_before_anything_is_run_or_written(trainer, tmp_path):
    wrong = small_grid(conditions={"a": {}, "b": {"set": {"federation.local_steps": -1}}, "c": {}})
    with pytest.raises(ConfigError, match="local_steps"):
        run_study(wrong, tmp_path / "study", progress=False)
    assert not trainer.runs and not (tmp_path / "study").exists()


def test_tables_read_back_are_what_was_written(trainer, tmp_path):
    result = run_study(small_grid(), tmp_path / "study", progress=False)
    back = read_csv(tmp_path / "study" / RESULTS, result.grid.first_tried)
    assert [(r.cell, dict(r.numbers)) for r in back] == [(r.cell, dict(r.numbers)) for r in result.results]


def test_a_folder_read_back_says_what_its_study_said(trainer, tmp_path):
    result = run_study(small_grid(), tmp_path / "study", progress=False)
    back = read_study(tmp_path / "study")
    assert back.verdicts == result.verdicts and back.chosen == result.chosen and back.values() == result.values()
    assert [r.folder for r in back.results] == [r.folder for r in result.results]
    assert (list(back.grid.methods), list(back.grid.conditions)) == (["lora", "ffa"], ["a", "b", "c"])


@pytest.mark.parametrize("content", [None, "", "study: small\n", "{", "study: small\nscale: x\ndefinition: {}\n"])
def test_a_folder_without_a_readable_study_is_named(content, tmp_path):
    if content is not None:
        (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(ConfigError, match=str(tmp_path)):
        read_study(tmp_path)


def test_a_real_study_that_is_interrupted_in_a_round_ends_where_it_would_have(tmp_path, monkeypatch):
    model, data = save_model(tmp_path / "model"), save_texts(tmp_path / "texts.csv")
    base = small_config(model, data, federation__rounds=2).model_dump()
    part = {"seeds": 1}
    scale = {"base": "laptop", "smoke": part, "verdict": part}
    tried = {"ffa": {"optimizer.lr": [0.1, 0.5]}}
    grid = small_grid(base, tried, methods={"ffa": {}}, conditions={"a": {}}, claims=[], scales={"laptop": scale})
    monkeypatch.setattr(tuning, "MOST_WIDENINGS", 0)
    real, rounds = training.Run.complete_round, []

    def complete_round(run, row):
        """The second of two runs that train together is interrupted before its second round is on the disk."""
        config = run.experiment.config
        if len(rounds) == 3:
            rounds.append(None)
            raise KeyboardInterrupt
        rounds.append((config.optimizer.lr, config.seed, row["round"]))
        real(run, row)

    monkeypatch.setattr(training.Run, "complete_round", complete_round)
    with pytest.raises(KeyboardInterrupt):
        run_study(grid, tmp_path / "study", progress=False)
    resumed = run_study(grid, tmp_path / "study", resume=True, progress=False)
    trained = [each for each in rounds if each is not None]
    assert len(trained) == len(set(trained)) == 7 * 2, "six runs that choose and one that is reported, two rounds each"
    monkeypatch.setattr(training.Run, "complete_round", real)
    whole = run_study(grid, tmp_path / "whole", progress=False)
    assert resumed.values() == whole.values() and resumed.values("loss") == whole.values("loss")
    assert resumed.chosen == whole.chosen
    assert set(resumed.results[0].numbers) >= {"accuracy", "bytes_up_per_client_round", "trained_numbers", "seconds"}


def test_the_pilots_variance_says_how_many_seeds_are_registered_before_they_are_run(trainer, tmp_path):
    result = run_study(small_grid(is_powered=True), tmp_path / "study", progress=False)
    (need,) = read_power(tmp_path / "study")
    assert len(result.grid.seeds) == need.seeds == 5 and need.deviation == 0, "the stand-in's contrast never varies"
    assert {r.cell.seed for r in result.tuning if r.cell.method == "ffa"} == set(TUNING_SEEDS), "a pilot of one value"
    assert read_study(tmp_path / "study").verdicts == result.verdicts and result.verdicts[0].seeds == 5


def test_a_study_whose_pilot_says_nothing_of_its_claims_does_not_claim_a_power_analysis(trainer, tmp_path):
    claims = [{"says": "Off costs LoRA more", "contrast": {"lora@a": 1, "lora@c": -1}}]
    folder = tmp_path / "study"
    result = run_study(small_grid(is_powered=True, claims=claims), folder, progress=False)
    registered = yaml.safe_load((folder / REGISTRATION).read_text())
    assert not registered["power"] and "probability" not in registered["rule"] and "fewest" in registered["rule"]
    assert "say nothing of these claims' variance" in size_in_words(result)
    registered["rule"] = "seeds: in other words"
    (folder / REGISTRATION).write_text(yaml.safe_dump(registered, sort_keys=False))
    known = digest(folder)
    run_study(small_grid(is_powered=True, claims=claims), folder, resume=True, progress=False)
    assert digest(folder) == known, "what was registered stays as it was written"


def test_a_study_whose_registration_changed_is_refused(trainer, tmp_path):
    run_study(small_grid(), tmp_path / "study", progress=False)
    known = digest(tmp_path / "study")
    run_study(small_grid(), tmp_path / "study", resume=True, progress=False)
    assert digest(tmp_path / "study") == known
    path = tmp_path / "study" / REGISTRATION
    path.write_text(path.read_text().replace("above: 0.0", "above: -0.1"))
    with pytest.raises(ConfigError, match="registers other claims, values or seeds"):
        run_study(small_grid(), tmp_path / "study", resume=True, progress=False)


def test_studies_that_ask_for_one_run_share_it(trainer, tmp_path):
    for name in ("one", "other"):
        run_study(small_grid(), tmp_path / name, progress=False, cells=tmp_path / "cells")
    assert len(trainer.runs) == RUNS and set(trainer.runs.values()) == {1}
    one, other = (read_study(tmp_path / name) for name in ("one", "other"))
    assert "registered before these runs (SHA" in size_in_words(one)
    assert f"before these runs, but {REPORTED} of them, which other studies share, (SHA" in size_in_words(other)
    run_study(small_grid(), tmp_path / "one", resume=True, progress=False, cells=tmp_path / "cells")
    assert "registered before these runs (SHA" in size_in_words(read_study(tmp_path / "one"))


def test_what_a_study_takes_is_said_once_a_run_of_each_method_was_timed(trainer, tmp_path):
    said = []
    run_study(small_grid(is_powered=True), tmp_path / "study", progress=False, say=said.append)
    (text,) = said
    assert "24 runs to choose values" in text and "12 or more to report, of lora 4 s, ffa 4 s each" in text
    assert "about 2 minutes of training" in text


def test_a_budget_ends_between_seeds_and_loses_nothing(trainer, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("ffalora.studies.budget.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(runner.time, "monotonic", lambda: clock[0])
    real = trainer._run

    def run(config, folder, resume):
        real(config, folder, resume)
        clock[0] += 10

    monkeypatch.setattr(trainer, "_run", run)
    result = run_study(small_grid(), tmp_path / "study", progress=False, budget=Budget(18 * 10 + 90))
    assert len(result.results) == 6 and {r.cell.seed for r in result.results} == {0} and "--budget" in result.stopped
    assert not result.is_finished and read_study(tmp_path / "study").verdicts == result.verdicts
    assert len(rows(tmp_path / "study" / RESULTS)) == 6 and result.verdicts[0].seeds == 1
    whole = run_study(small_grid(), tmp_path / "study", resume=True, progress=False)
    assert len(trainer.runs) == RUNS and not whole.stopped and len(whole.results) == REPORTED
    assert whole.is_finished


def test_a_study_goes_on_from_its_tables_where_run_folders_are_gone(trainer, tmp_path):
    whole = run_study(small_grid(), tmp_path / "study", progress=False)
    shutil.rmtree(tmp_path / "study" / CELLS)
    table = tmp_path / "study" / RESULTS
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-2]))
    again = run_study(small_grid(), tmp_path / "study", resume=True, progress=False)
    assert sum(trainer.runs.values()) == RUNS + 2, "the two rows that were missing, and no others"
    assert to_csv(again.results) == to_csv(whole.results) and again.verdicts == whole.verdicts


@pytest.mark.parametrize("lost", [[], [0], [5]])
def test_a_spent_budget_takes_no_row_from_a_study(lost, trainer, tmp_path):
    """Whole, or without a run of the first seed or the last one of it; run folders are gone."""
    whole = run_study(small_grid(), tmp_path / "study", progress=False)
    shutil.rmtree(tmp_path / "study" / CELLS)
    table = tmp_path / "study" / RESULTS
    head, *lines = table.read_text().splitlines(keepends=True)
    kept = "".join([head, *(line for i, line in enumerate(lines) if i not in lost)])
    table.write_text(kept)
    again = run_study(small_grid(), tmp_path / "study", resume=True, progress=False, budget=Budget(0))
    assert bool(again.stopped) == bool(lost) and len(again.results) == REPORTED - len(lost)
    assert table.read_text() == kept and (lost or again.verdicts == whole.verdicts)


def test_rows_of_other_defaults_are_not_mixed_with_todays(trainer, tmp_path):
    run_study(small_grid(), tmp_path / "study", progress=False)
    path = tmp_path / "study" / MANIFEST
    manifest = yaml.safe_load(path.read_text())
    manifest["setting"]["optimizer"]["normalize"] = not manifest["setting"]["optimizer"]["normalize"]
    path.write_text(yaml.safe_dump(manifest))
    with pytest.raises(ConfigError, match=r"another definition or configuration \(optimizer\.normalize\)"):
        run_study(small_grid(), tmp_path / "study", resume=True, progress=False)
    del manifest["setting"]["optimizer"]["normalize"]
    path.write_text(yaml.safe_dump(manifest))
    assert run_study(small_grid(), tmp_path / "study", resume=True, progress=False).results, "a key that came since"
