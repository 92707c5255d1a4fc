"""The page of a study: its numbers follow from the runs, it needs nothing but itself, and nothing on it overlaps."""

import re
import shlex
from dataclasses import replace

import numpy as np
import pytest
from browser import check, look_at
from click.testing import CliRunner
from fabricated_study import fabricate
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy import stats
from small_grid import Trainer, small_grid

from ffalora.cli.study import command
from ffalora.report import render
from ffalora.studies import runner
from ffalora.studies.folder import read_study
from ffalora.studies.grid import load_grid, with_seeds
from ffalora.studies.labels import condition_labels, number_text, spread_text
from ffalora.studies.page import changed_flags, study_command, study_page, write_page
from ffalora.studies.plots import study_plots
from ffalora.studies.runner import run_study
from ffalora.studies.study import study_names
from ffalora.studies.tables import chosen_table, claims_table, cost_table, metric_table, pilot_table


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Four methods, three conditions, five seeds."""
    return fabricate(tmp_path_factory.mktemp("study") / "heterogeneity")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The small grid, as the runner leaves it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "simulate_together", Trainer())
        return run_study(small_grid(), tmp_path_factory.mktemp("small") / "study", progress=False)


def row(table, name):
    return dict(zip(table.head, next(r for r in table.rows if r[0] == name), strict=True))


def test_the_table_gives_mean_and_interval_over_seeds(study):
    values = [r.numbers["accuracy"] for r in study.results if (r.cell.method, r.cell.condition) == ("ffa", "severe")]
    half = stats.t.ppf(0.975, 4) * stats.sem(values)
    assert row(metric_table(study), "severe")["ffa"] == f"{np.mean(values):.3f} ± {half:.3f}"
    assert row(metric_table(study, "loss"), "severe")["ffa"] == f"{np.mean(1.3 - np.array(values)):.3f} ± {half:.3f}"


def test_a_value_at_the_edge_of_what_was_tried_is_marked(study, small):
    edge = replace(study, chosen=dict(study.chosen))
    edge.chosen["lora", "iid"] = (("optimizer.lr", max(study.tried(("lora", "iid"))["optimizer.lr"])),)
    edge.chosen["ffa", "iid"] = (("optimizer.lr", min(study.tried(("ffa", "iid"))["optimizer.lr"])),)
    table = chosen_table(edge)
    assert row(table, "i.i.d.")["lora"].endswith(" ↑") and row(table, "i.i.d.")["ffa"].endswith(" ↓")
    assert not re.search("[↑↓]", row(chosen_table(study), "i.i.d.")["lora"])
    assert row(chosen_table(small), "easy")["ffa"] == "8", "a single value is no edge"


def test_a_condition_that_takes_values_from_another_shows_them_without_its_factor(small):
    assert row(chosen_table(small), "easy, off (of “easy”)")["lora"] == "8"
    assert row(chosen_table(small), "easy")["lora"] == "2"


def test_claims_keep_their_numbers_and_the_mark_of_the_paper(study):
    verdict = study.verdicts[0]
    (first, *_, last) = claims_table(study.verdicts).rows
    assert first[0].endswith(" †") and not last[0].endswith("†")
    assert first[1:] == (
        f"{verdict.mean:+.4f}", f"{verdict.low:+.4f} to {verdict.high:+.4f}", f"{verdict.p:.2g}", "5", verdict.outcome,
    )  # fmt: skip
    page = study_page(study)
    assert [finding.text for finding in page.findings] == [v.to_text() for v in study.verdicts]
    assert [bool(finding.remark) for finding in page.findings] == [True, True, False, False]


def test_the_pilot_is_that_of_the_chosen_values_on_the_validation_split(study, small):
    rate = dict(study.chosen["ffa", "severe"])["optimizer.lr"]
    values = [
        r.numbers["accuracy"]
        for r in study.tuning
        if (r.cell.method, r.cell.condition, dict(r.cell.chosen)["optimizer.lr"]) == ("ffa", "severe", rate)
    ]
    half = stats.t.ppf(0.975, 2) * stats.sem(values)
    assert len(values) == 3 and row(pilot_table(study), "severe")["ffa"] == f"{np.mean(values):.3f} ± {half:.3f}"
    assert "validation split" in pilot_table(study).caption and pilot_table(replace(small, tuning=[])) is None


def test_costs_hold_every_number_that_was_counted(tmp_path):
    costs = cost_table(fabricate(tmp_path / "cost", "cost"))
    ffa = row(costs, "ffa")
    assert (ffa["up, a client and round"], ffa["trained numbers"], ffa["largest ε"]) == ("49.2 kB", "12,288", "6.00")
    assert {"flops a sample", "memory of a step", "kept for backward", "time a round"} <= set(costs.head)


def test_times_are_shown_only_where_no_run_shares_the_machine(study):
    assert all("seconds" in r.numbers for r in study.results)
    assert not any("time" in column for column in cost_table(study).head)


def test_costs_that_differ_by_condition_stand_apart(study):
    for r in study.results:
        if r.cell.condition == "severe":
            r.numbers["trained_numbers"] = 7
    assert [r[0] for r in cost_table(study).rows][:3] == ["lora, i.i.d.", "ffa, i.i.d.", "lora, mild"]


def test_a_page_of_the_tables_alone_equals_that_of_the_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "simulate_together", Trainer())
    result = run_study(load_grid("heterogeneity", "laptop", "smoke"), tmp_path / "study", progress=False)
    run, stored = study_page(result), study_page(read_study(result.folder))
    assert (run.asked, run.findings, run.tables, run.details) == (
        stored.asked,
        stored.findings,
        stored.tables,
        stored.details,
    )


def test_one_seed_has_no_interval(tmp_path):
    result = fabricate(tmp_path / "study", "methods", size="smoke")
    texts = str(metric_table(result)) + str(claims_table(result.verdicts))
    assert not re.search(r"\d ± |\d to ", texts) and "one seed" in texts
    assert "±" not in render(study_page(result)).partition("In detail")[0]


def test_an_unfinished_study_says_what_is_missing(tmp_path):
    page = study_page(fabricate(tmp_path / "study", cells=7))
    assert any("only 7 of 45 runs are finished" in text for text in page.asked)
    assert "–" in page.tables[0].rows[0]


def test_cells_of_fewer_seeds_are_counted_where_a_study_stopped_between_them(tmp_path):
    grid = load_grid("heterogeneity", "laptop", "verdict")
    result = fabricate(tmp_path / "study", cells=3 * len(grid.places()) + 1)
    assert "mean over 3 to 4 seeds ±" in metric_table(result).caption


def test_the_command_repeats_the_study(tmp_path):
    changes = {"federation.rounds": 3, "clients.proportions": [[0.5, 0.5]], "model.name": "my model"}
    grid = with_seeds(load_grid("privacy", "laptop", "verdict", changes, protocol="paper"), 7, 40)
    words = shlex.split(study_command(grid))
    context = command.make_context("study", words[2:])
    assert words[:2] == ["ffalora", "study"]
    given = context.params["overrides"]
    assert given.pop("seeds") == 7
    given_grid = load_grid(
        "privacy", context.params["scale"], context.params["size"], given, protocol=context.params["protocol"]
    )
    assert given_grid.base == grid.base and given_grid.protocol == "paper" and context.params["first_seed"] == 40
    usual = "ffalora study privacy --scale laptop --size verdict"
    assert study_command(load_grid("privacy", "laptop", "verdict")) == usual, "the power analysis says how many seeds"
    assert study_command(load_grid("cost", "laptop", "smoke")) == "ffalora study cost --scale laptop --size smoke"


def test_flags_of_long_and_of_named_values_are_read_as_what_they_were_made_of():
    pair = [0.1, 0.9]
    now = {
        "clients": {"proportions": [pair] * 12},
        "adapter": {"rank_pattern": {"layer.5": 4}},
        "data": {"label_texts": {"v1.0": "größer"}},
        "optimizer": {"lr": 1e-5},
    }
    words = changed_flags({"adapter": {"rank_pattern": {}, "rank": 8}}, now | {"adapter": now["adapter"] | {"rank": 8}})
    given = command.make_context("study", ["privacy", *words]).params["overrides"]
    assert given == {
        "clients.proportions": now["clients"]["proportions"],
        "adapter.rank_pattern": {"layer.5": 4},
        "data.label_texts": {"v1.0": "größer"},
        "optimizer.lr": 1e-5,
    }


def test_the_page_holds_its_question_statement_environment_and_table_files(study):
    page = write_page(study)
    text = page.read_text()
    rounds = study.grid.base["federation"]
    for part in (
        study.grid.study.question, f"{rounds['rounds']} rounds of {rounds['local_steps']} local steps",
        "Privacy of this run (severe): none was asked for",
        "caveat &lt;b&gt;", "ffalora study heterogeneity --scale laptop --size verdict", "<dt>device</dt>",
        "claim of the paper", "ffalora simulate ", "5/95",
    ):  # fmt: skip
        assert part in text, part
    assert not re.search(r"@import|url\((?!#)|<script|src=|href=\"(?!#|data:)", text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)), "two plots share an id: one would be drawn with the other's parts"
    assert (page.parent / "results.csv").exists() and (page.parent / "plots" / "metric-accuracy.png").exists()


def test_the_same_study_gives_the_same_page(study):
    assert render(study_page(study)) == render(study_page(study))


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Every study of the package, with made-up figures."""
    return {name: fabricate(tmp_path_factory.mktemp("all") / name, name) for name in study_names()}


@pytest.mark.long
@pytest.mark.parametrize("name", study_names())
def test_words_on_a_plot_stand_apart_and_whole(everything, name):
    for plot in study_plots(everything[name]):
        canvas = FigureCanvasAgg(plot.figure)
        canvas.draw()
        frame = plot.figure.bbox
        (axes,) = plot.figure.axes
        for texts in (axes.get_xticklabels(), axes.get_yticklabels(), axes.texts):
            boxes = [t.get_window_extent() for t in texts if t.get_text() and t.get_visible()]
            shown = [box for box in boxes if box.overlaps(frame)]
            pairs = [(a, b) for i, a in enumerate(shown) for b in shown[i + 1 :] if a.overlaps(b)]
            assert pairs == [], f"{plot.name}: labels overlap"
        words = [t for t in axes.texts if t.get_text()] + ([axes.get_legend()] if axes.get_legend() else [])
        for box in (word.get_window_extent() for word in words):
            assert box.x0 >= 0 and box.x1 <= frame.x1 and box.y1 <= frame.y1, f"{plot.name}: cut off"


def test_labels_are_distinct_and_short(everything):
    for result in everything.values():
        labels = condition_labels(result.grid)
        assert len(set(labels.values())) == len(labels) and max(map(len, labels.values())) <= 30


def test_a_browser_draws_every_page_whole_and_readable(everything):
    names = ["heterogeneity", "methods", "cost", "alpha"]
    pages = [study_page(everything[name]) for name in names]
    for page, look in zip(pages, look_at([render(page) for page in pages]), strict=True):
        check(look, drawings=len(page.plots))


def test_numbers_are_written_as_people_write_them():
    assert number_text("bytes_up", 98304) == "98.3 kB" and number_text("seconds", 3.456) == "3.46 s"
    assert number_text("flops_per_sample", 2.1e8) == "210 M" and number_text("trained_numbers", 24576) == "24,576"
    assert spread_text("seconds", [3.0, 3.1, 3.2]) == "3.10 ± 0.25 s" and spread_text("accuracy", []) == "–"
    assert spread_text("bytes_up", [5e6, 5e6]) == "5 MB"
    assert spread_text("flops_per_sample", [1.79e8, 1.8e8, 1.81e8]) == "180 M ± 2.484 M"


def test_the_command_line_ends_with_table_verdicts_and_page(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "simulate_together", Trainer())
    folder = tmp_path / "study"
    words = ["heterogeneity", "--output", str(folder), "--no-progress", "--seeds", "3"]
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 0, done.output
    assert re.search(r"^lora +0\.\d{3} ± ", done.output, re.MULTILINE) and "3 seeds, p =" in done.output
    assert done.output.strip().endswith(f"page {folder / 'study.html'}") and (folder / "study.html").exists()
    again = CliRunner().invoke(command, words)
    assert again.exit_code != 0
    assert CliRunner().invoke(command, ["heterogeneity", "--seed", "3"]).exit_code != 0


def test_an_interrupted_study_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "simulate_together", Trainer(stop_at=3))
    words = ["heterogeneity", "--output", str(tmp_path / "s"), "--no-progress", "--federation.rounds", "2"]
    stopped = CliRunner().invoke(command, words)
    assert stopped.exit_code == 130
    (again,) = re.findall(r"^  ffalora study (.*)$", stopped.output, re.MULTILINE)
    monkeypatch.setattr(runner, "simulate_together", Trainer())
    assert CliRunner().invoke(command, [*shlex.split(again), "--no-progress"]).exit_code == 0


@pytest.mark.parametrize("output", [[], ["--output", "all of them"]])
def test_studies_that_share_cells_go_on_in_the_folders_in_which_they_were_interrupted(output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = Trainer(stop_at=3), Trainer()
    monkeypatch.setattr("ffalora.studies.page.write_page", lambda result: result.folder / "study.html")
    monkeypatch.setattr(runner, "simulate_together", first)
    stopped = CliRunner().invoke(command, ["tier-a", "--no-progress", "--federation.rounds", "2", *output])
    (again,) = re.findall(r"^  ffalora study (.*)$", stopped.output, re.MULTILINE)
    monkeypatch.setattr(runner, "simulate_together", second)
    monkeypatch.setattr(runner, "step_costs", lambda config: {})
    assert CliRunner().invoke(command, shlex.split(again)).exit_code == 0
    assert len(first.runs.keys() & second.runs.keys()) == 1, "the run that was interrupted goes on, and no other twice"
    assert len({place.parent for place in [*first.runs, *second.runs]}) == 1


def test_fresh_seeds_are_counted_by_whoever_asks_for_them(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "simulate_together", Trainer())
    words = ["privacy", "--size", "verdict", "--output", str(tmp_path / "s"), "--first-seed", "5"]
    refused = CliRunner().invoke(command, words)
    assert "say with --seeds how many" in str(refused.exception) and not (tmp_path / "s").exists()
