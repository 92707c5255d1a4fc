"""Reports: what the tables say follows from the run folders, and the page needs nothing but itself."""

import json
import math
import re
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from browser import check, look_at
from fabricated import write_run

from ffalora.config import from_mapping, load_config, merge, to_yaml
from ffalora.report import Page, ReportError, Table, page, read_runs, render, run_page, table_text, write_report
from ffalora.report.baselines import baseline_table
from ffalora.report.live import live_state
from ffalora.report.page import statement_blocks
from ffalora.report.plots import run_plots
from ffalora.report.tables import bytes_text, epsilon_text, interval, interval_text, result_table

DEMO = "ffalora/configs/demo.yaml"
PRIVATE = {"privacy": {"unit": "sample", "target_epsilon": 6}, "federation": {"rounds": 4}}


@pytest.fixture
def demo(tmp_path):
    """Two methods, three seeds."""
    top = tmp_path / "demo"
    top.mkdir()
    config = load_config(DEMO, {"seeds": 3, "methods.ffa.optimizer.lr": 2})
    (top / "config.yaml").write_text(to_yaml(config))
    for seed in range(3):
        for i, (name, one) in enumerate(config.runs().items()):
            write_run(one.model_copy(update={"seed": seed}), top / name / f"seed-{seed}", skill=0.22 - 0.1 * i)
    return top


class _Page(HTMLParser):
    """Collects what the page refers to, the text that is shown, and whether elements nest."""

    def __init__(self, content):
        super().__init__()
        self.links, self.text, self.ids, self.open, self.unbalanced = [], [], [], [], []
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action") and v]
        self.ids += [named["id"]] if "id" in named else []
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def test_the_table_gives_mean_and_interval_over_seeds_and_costs_per_round(demo):
    table = run_page(read_runs([demo])).tables[0]
    row = dict(zip(table.head, table.rows[0], strict=True))
    # accuracies .72, .73, .74: t(.975, 2 dof) = 4.3027, s = .01, half width 4.3027 * .01 / sqrt(3)
    assert row["method"] == "ffa" and row["accuracy"] == "0.730 ± 0.025" and row["seeds"] == "3"
    assert (row["largest ε"], row["up / round"], row["down / round"]) == ("6.00", "590 kB", "1.18 MB")
    assert row["seconds"] == f"{2.5 * load_config(demo / 'config.yaml').federation.rounds:.0f}"


def test_a_single_run_has_no_interval_and_says_when_it_is_not_private(tmp_path):
    write_run(from_mapping({"federation": {"rounds": 3}}), tmp_path)
    text = table_text(read_runs([tmp_path]))
    assert "±" not in text and "not private" in text and "0.700" in text
    assert [plot.name for plot in run_plots(read_runs([tmp_path]))] == ["metric", "traffic", "partition"]


def _federation(folder, stated, last):
    """A finished federation whose rows say ``last`` of ε, and whose summary ``stated``."""
    config = from_mapping(merge(PRIVATE, {"privacy": {"noise": "secure"}}))
    write_run(config, folder)
    rows = [json.loads(line) | {"epsilon": last} for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text(json.dumps({"epsilon": stated}))
    return read_runs([folder])


def test_a_federation_whose_clients_do_not_report_their_epsilon_is_not_called_unprotected(tmp_path):
    shown = _Page(render(run_page(_federation(tmp_path / "run", None, None)))).text
    assert "not reported" in shown and "not private" not in shown
    assert any(text.endswith("ε not reported") for text in shown)


def test_a_report_gives_the_epsilon_that_a_federation_states_with_what_failed_rounds_allow(tmp_path):
    runs = _federation(tmp_path / "run", "infinity", 2.5)
    assert "∞" in result_table(runs).rows[0] and run_page(runs).title.endswith("at ε = ∞")
    assert live_state(tmp_path / "run")["runs"][0]["epsilon"] == math.inf


def test_an_interrupted_run_is_marked_and_not_passed_off_as_finished(tmp_path):
    write_run(from_mapping(PRIVATE), tmp_path, rounds=2)
    assert "only 2 of 4 rounds" in table_text(read_runs([tmp_path]))


def test_an_infinite_epsilon_is_shown_as_infinite(tmp_path):
    write_run(from_mapping(PRIVATE), tmp_path)
    text = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(re.sub(r'"epsilon": [\d.]+', '"epsilon": Infinity', text))
    assert "∞" in table_text(read_runs([tmp_path]))
    write_report(read_runs([tmp_path]), tmp_path)


def test_methods_are_told_apart_by_the_keys_in_which_they_differ(demo):
    differing = run_page(read_runs([demo])).tables[1]
    assert {row[0] for row in differing.rows} >= {"federation.strategy", "optimizer.lr"}
    assert "seed" not in {row[0] for row in differing.rows}


def test_runs_of_equal_names_in_two_folders_are_told_apart(tmp_path):
    for name in ("a", "b"):
        write_run(from_mapping(PRIVATE), tmp_path / name)
    runs = read_runs([tmp_path / "a", tmp_path / "b"])
    assert [run.label for run in runs] == ["a/ffa", "b/ffa"]
    page = run_page(runs)
    assert page.commands == ["ffalora simulate a.yaml", "ffalora simulate b.yaml"] and set(page.configs) == {
        "a.yaml",
        "b.yaml",
    }


def test_the_page_holds_everything_and_refers_to_nothing_outside(demo):
    write_report(read_runs([demo]), demo)
    text_of_page = (demo / "report.html").read_text()
    assert len(text_of_page.encode()) <= 200_000
    page = _Page(text_of_page)
    assert [link for link in page.links if not link.startswith(("#", "data:"))] == []
    assert not re.search(r"@import|url\((?!#|\"?data:)|<script", text_of_page)
    assert page.unbalanced == [] and page.open == []
    assert len(page.ids) == len(set(page.ids)), "two plots share an id: one would be drawn with the other's parts"
    text = "".join(page.text)
    for part in (
        "0.730 ± 0.025",
        "ε = 6",
        "ffalora simulate config.yaml",
        "caveat <script>",
        "strategy: ffa",
        "movie-reviews",
    ):
        assert part in text, part
    assert "viewport" in text_of_page and "prefers-color-scheme: dark" in text_of_page


def test_a_full_disk_is_told_with_what_is_to_be_done(demo, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "save_plots", full)
    with pytest.raises(ReportError, match=r"No space left on device.*make room, then `ffalora report "):
        write_report(read_runs([demo]), demo)


def test_only_a_run_with_secure_noise_is_called_protected(tmp_path):
    for noise in ("seeded", "secure"):
        write_run(from_mapping(PRIVATE | {"privacy": PRIVATE["privacy"] | {"noise": noise}}), tmp_path / noise)
    seeded, secure = (run_page(read_runs([tmp_path / noise])) for noise in ("seeded", "secure"))
    assert "Every sample of every client is protected: at most ε = 6" in secure.asked[0]
    assert "A simulation, in which nothing is protected" in seeded.asked[0]
    assert "Every sample of every client is protected" not in seeded.asked[0]


def test_exact_counts_of_classes_are_marked_in_a_simulation_and_not_shown_of_protected_data(tmp_path):
    for noise in ("seeded", "secure"):
        write_run(from_mapping(PRIVATE | {"privacy": PRIVATE["privacy"] | {"noise": noise}}), tmp_path / noise)
    marked = {plot.name: plot.title for plot in run_plots(read_runs([tmp_path / "seeded"]))}
    assert "exact counts of the clients' data" in marked["partition"]
    assert "partition" not in [plot.name for plot in run_plots(read_runs([tmp_path / "secure"]))]


def test_a_privacy_statement_is_wrapped_on_the_page_instead_of_being_cut(tmp_path):
    write_run(from_mapping(PRIVATE), tmp_path)
    page = render(run_page(read_runs([tmp_path])))
    assert '<pre class="prose">Privacy of this run' in page and "pre.prose { white-space: pre-wrap; }" in page


STATEMENT = """Privacy of this run: ε = 5.998 at most, at δ = 1e-05
  unit        sample

  client       records        σ    target
  St. Mary         274   2.9066         6
  Nord; Süd        280   2.8513         6

  Not covered:
  - <other> runs
"""


def test_the_clients_of_a_statement_are_a_table_under_their_names(tmp_path):
    first, clients, last = statement_blocks(STATEMENT)
    assert first.startswith("Privacy of this run") and last.endswith("- <other> runs")
    assert clients.head == ("client", "records", "σ", "target")
    assert clients.rows == (("St. Mary", "274", "2.9066", "6"), ("Nord; Süd", "280", "2.8513", "6"))
    write_run(from_mapping(PRIVATE), tmp_path)
    (tmp_path / "privacy.txt").write_text(STATEMENT)
    page = render(run_page(read_runs([tmp_path])))
    assert '<span>Nord; Süd</span></th><td role="cell" data-head="records">280</td>' in page
    assert "- &lt;other&gt; runs" in page


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({}, "Fine-tuning on movie-reviews: accuracy 0.700"),
        (PRIVATE, "Simulated private fine-tuning on movie-reviews: accuracy 0.700 at ε = 6.00"),
        (
            merge(PRIVATE, {"privacy.noise": "secure", "data.name": "/somewhere/own table.csv"}),
            "Private fine-tuning on own table: accuracy 0.700 at ε = 6.00",
        ),
    ],
)
def test_the_title_says_what_was_done_to_what_and_what_came_of_it(tmp_path, changes, title):
    write_run(from_mapping(changes), tmp_path)
    assert run_page(read_runs([tmp_path])).title == title


def test_several_methods_are_named_as_papers_do(demo):
    assert run_page(read_runs([demo])).title == (
        "FFA-LoRA, LoRA and FedSVD side by side: simulated private fine-tuning on movie-reviews"
    )
    for run in demo.glob("*/seed-*"):
        row = {"name": "largest class", "accuracy": 0.5, "epsilon": None, "about": "always one", "is_bound": False}
        (run / "baselines.json").write_text(json.dumps([row]))
    title = run_page(read_runs([demo])).title
    assert title.startswith("Was simulated private fine-tuning on movie-reviews worth it? FFA-LoRA, LoRA and FedSVD")


def test_a_baseline_that_methods_of_one_seed_share_counts_once(demo):
    seeds = sorted({run.name for run in demo.glob("*/seed-*")})
    for run in demo.glob("*/seed-*"):
        accuracy = 0.5 + 0.1 * seeds.index(run.name)
        row = {"name": "probe", "accuracy": accuracy, "epsilon": 6.0, "about": "linear", "is_bound": False}
        (run / "baselines.json").write_text(json.dumps([row]))
    runs = read_runs([demo])
    first = [run for run in runs if run.config["seed"] == min(each.config["seed"] for each in runs)]
    one, all_of_them = ({row[0]: row[1] for row in baseline_table(some).rows} for some in (first, runs))
    assert len(first) == 3 and one["probe"] == "0.500"
    assert all_of_them["probe"] == interval_text([0.5 + 0.1 * i for i in range(len(seeds))])


def test_baselines_of_two_budgets_are_two_baselines_and_not_two_seeds_of_one(tmp_path):
    for epsilon, accuracy in ((1.0, 0.7), (6.0, 0.8)):
        folder = tmp_path / f"eps{epsilon:g}"
        write_run(from_mapping(merge(PRIVATE, {"privacy.target_epsilon": epsilon})), folder)
        probe = {"name": "probe", "accuracy": accuracy, "epsilon": epsilon, "about": "linear", "is_bound": False}
        texts = {"name": "texts", "accuracy": 0.6, "epsilon": None, "about": "class texts", "is_bound": False}
        (folder / "baselines.json").write_text(json.dumps([probe, texts]))
    rows = [row[:3] for row in baseline_table(read_runs([tmp_path / "eps1", tmp_path / "eps6"])).rows]
    assert ("probe (of eps6/ffa)", "0.800", "6.00") in rows and ("probe (of eps1/ffa)", "0.700", "1.00") in rows
    assert ("texts", "0.600", "0") in rows and len(rows) == 5


def test_natural_clients_are_counted_and_named(tmp_path):
    natural = {"clients": {"partition": "column", "column": "hospital"}}
    write_run(from_mapping(natural), tmp_path)
    asked = run_page(read_runs([tmp_path])).asked[0]
    assert "at 2 clients, one for each hospital (client-0, client-1): " in asked


def test_metrics_come_with_the_number_of_rows_and_the_interval_that_it_leaves(tmp_path):
    write_run(from_mapping(PRIVATE), tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({"evaluated": {"split": "test", "rows": 200}}))
    table = result_table(read_runs([tmp_path]))
    row = dict(zip(table.head, table.rows[0], strict=True))
    # Wilson's interval of 140 of 200
    assert row["accuracy"] == "0.700 (0.633 to 0.759)" and row["macro-F1"] == "0.680"
    assert "on 200 rows of the test split" in table.caption and "95% interval of a share" in table.caption
    assert table.caption in table_text(read_runs([tmp_path]))


def test_a_run_that_was_chosen_among_several_is_said_to_look_better_than_it_is(tmp_path):
    for name, trials in (("alone", 1), ("chosen", 10)):
        write_run(from_mapping({"privacy": PRIVATE["privacy"] | {"trials": trials}}), tmp_path / name)
        caption = result_table(read_runs([tmp_path / name])).caption
        assert ("was chosen by these rows among several" in caption) == (trials > 1)


def test_the_command_of_the_page_repeats_the_run(demo, tmp_path):
    page = run_page(read_runs([demo]))
    (tmp_path / "config.yaml").write_text(page.configs["config.yaml"])
    assert page.commands == ["ffalora simulate config.yaml"]
    assert load_config(tmp_path / "config.yaml") == load_config(demo / "config.yaml")


def test_plots_on_a_page_take_their_ink_from_the_page_and_files_stay_readable_alone(demo):
    write_report(read_runs([demo]), demo)
    page = (demo / "report.html").read_text()
    assert page.count("<svg") == page.count('role="img"') == 4 and "currentColor" in page
    for name in ("metric", "epsilon", "traffic", "partition"):
        assert (demo / "plots" / f"{name}.png").stat().st_size > 1000
        assert ET.parse(demo / "plots" / f"{name}.svg").getroot().tag.endswith("svg")
        assert "currentColor" not in (demo / "plots" / f"{name}.svg").read_text()


def test_the_same_run_gives_the_same_page_to_the_byte(demo):
    runs = read_runs([demo])
    assert render(run_page(runs)) == render(run_page(runs))


def test_a_study_can_add_its_question_and_its_verdict():
    page = Page("Title", ["Asked & answered?"], [Table("note", ("a", "b"), (("1", "2"),))], [], verdict="Yes <b>no</b>")
    written = render(page)
    assert "Asked &amp; answered?" in written and "Yes &lt;b&gt;no&lt;/b&gt;" in written
    assert "Privacy" not in written and "Environment" not in written


@pytest.mark.parametrize("content", [None, "", "{broken\n"])
def test_a_folder_without_a_readable_run_is_named(content, tmp_path):
    write_run(from_mapping(PRIVATE), tmp_path / "run")
    if content is None:
        shutil.rmtree(tmp_path / "run")
    else:
        (tmp_path / "run" / "metrics.jsonl").write_text(content)
    with pytest.raises(ReportError, match=re.escape(str(tmp_path))):
        read_runs([tmp_path])


def test_many_clients_and_classes_still_make_a_plot(tmp_path):
    write_run(from_mapping(PRIVATE), tmp_path)
    classes = {f"class-{i}": i + 1 for i in range(20)}
    table = [{"client": f"client-{i}", "samples": 210, "share": 0.01, "classes": classes} for i in range(100)]
    (tmp_path / "partition.json").write_text(json.dumps(table))
    plot = run_plots(read_runs([tmp_path]))[-1]
    counts = "exact counts of the clients' data, for a simulation only"
    assert plot.title == f"Who holds what, first 40 of 100 clients; {counts}"
    assert len({bar.get_facecolor() for bar in plot.figure.axes[0].patches}) == 20


def test_sizes_and_intervals_are_written_as_people_write_them():
    assert [bytes_text(n) for n in (12, 1180, 590_000, 999_700, 1_769_472, 2.5e9)] == [
        "12 B", "1.18 kB", "590 kB", "1000 kB", "1.77 MB", "2.5 GB",
    ]  # fmt: skip
    assert epsilon_text(None) == "not private" and epsilon_text(5.991) == "6.00"
    assert epsilon_text(4.1e27).startswith("41000000000") and epsilon_text(4.38) == "4.38"
    assert epsilon_text(5.99) == "5.99" and epsilon_text(1.1) == "1.10"
    assert interval([0.5]) == (0.5, None)


def test_runs_without_noise_and_runs_that_diverged_are_reported_over_seeds_as_what_they_are(tmp_path):
    assert interval([math.inf, math.inf]) == (math.inf, None) and interval_text([0.7, math.nan]) == "nan"
    for seed in range(2):
        write_run(from_mapping(PRIVATE | {"seed": seed}), tmp_path / "runs" / f"seed-{seed}")
        written = tmp_path / "runs" / f"seed-{seed}" / "metrics.jsonl"
        written.write_text(re.sub(r'"epsilon": [\d.]+', '"epsilon": "infinity"', written.read_text()))
    page = run_page(read_runs([tmp_path / "runs"]))
    assert "∞" in page.tables[0].rows[0] and "epsilon" in {plot.name for plot in page.plots}


FAULTS = {
    "too wide": "<style>body { width: 900px }</style>",
    "loads a file": "<img src='other.png'>",
    "loads from elsewhere": "<img src='http://example.org/other.png'>",
    "broken script": "<script>nothing()</script>",
    "dark ink on dark paper": "<style>body { color: black !important }</style>",
    "empty drawing": "<svg></svg>",
}


def test_a_browser_draws_the_page_whole_on_phone_and_desk_in_both_schemes_and_notices_what_is_wrong(demo):
    write_report(read_runs([demo]), demo)
    empty = render(Page("Title", ["Asked?"], [], []))
    faulty = [empty.replace("</body>", fault + "</body>") for fault in FAULTS.values()]
    whole, sound, *wrong = look_at([(demo / "report.html").read_text(), empty, *faulty])
    check(whole, drawings=4)
    check(sound, drawings=0)
    for name, look in zip(FAULTS, wrong, strict=True):
        with pytest.raises(AssertionError):
            check(look, drawings=0)
            pytest.fail(f"not noticed: {name}")


def test_a_part_of_a_study_is_laid_out_by_condition_and_a_whole_study_is_sent_to_its_page(tmp_path):
    for condition in ("iid", "severe"):
        for seed in range(2):
            place = tmp_path / "runs" / condition / "ffa" / "lr=50" / f"seed-{seed}"
            write_run(from_mapping(PRIVATE | {"seed": seed}), place)
    (tmp_path / "study.yaml").write_text("study: heterogeneity\n")
    runs = read_runs(tmp_path / "runs" / condition for condition in ("iid", "severe"))
    assert list(dict.fromkeys(run.label for run in runs)) == ["iid/ffa/lr=50", "severe/ffa/lr=50"]
    cells = [tmp_path / "runs" / condition / "ffa" / "lr=50" / "seed-0" for condition in ("iid", "severe")]
    assert len({run.label for run in read_runs(cells)}) == 2, "two conditions pass for two seeds of one method"
    for study in (tmp_path, tmp_path / "runs"):
        (study / "study.yaml").write_text("study: heterogeneity\n")
        with pytest.raises(ReportError, match=rf"study\.html.*give their folders in {study / 'cells'}$"):
            read_runs([study])
    (tmp_path / "cells").mkdir()
    with pytest.raises(ReportError, match=rf"give their folders in {tmp_path / 'cells'}$"):
        read_runs([tmp_path / "runs"])


def test_a_seed_that_was_interrupted_before_it_was_evaluated_is_left_out_of_the_title(tmp_path):
    config = from_mapping(PRIVATE)
    for seed, rounds in ((0, None), (1, 2)):
        write_run(config.model_copy(update={"seed": seed}), tmp_path / f"seed-{seed}", rounds)
    path = tmp_path / "seed-1" / "metrics.jsonl"
    rows = [json.loads(line) | {"metrics": {}} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = run_page(read_runs([tmp_path]))
    assert ": accuracy 0.700 at ε" in page.title and page.plots[0].figure.axes[0].lines, "the other seed's curve"


def test_names_of_classes_and_clients_are_no_formulas(tmp_path):
    write_run(from_mapping({"federation": {"rounds": 1}}), tmp_path)
    client = {"client": "a $_$ b", "samples": 4, "share": 1.0, "classes": {"$10_to_$20": 2, "more": 2}}
    (tmp_path / "partition.json").write_text(json.dumps([client]))
    assert write_report(read_runs([tmp_path]), tmp_path).exists()


def test_a_folder_that_is_given_twice_counts_once(tmp_path):
    write_run(from_mapping(PRIVATE), tmp_path)
    assert len(read_runs([tmp_path, tmp_path])) == 1
