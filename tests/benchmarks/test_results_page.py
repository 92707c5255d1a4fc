"""The results page: it is what the committed tables say, and only whole studies of the right size get there."""

import csv
import hashlib
import json
import shutil

import bench_path  # noqa: F401
import numpy as np
import pytest
import results_page as page
import yaml
from fabricated_study import fabricate, write
from fabricated_theory import SECONDS, fabricate_theory
from scipy import stats

from ffalora.studies.grid import changed_keys, load_grid, with_seeds
from ffalora.studies.results import StudyResult
from ffalora.studies.theory import read_theory, theory_config
from ffalora.studies.theory.noise_alone import discordance_by_noise
from ffalora.studies.theory.words import span


@pytest.fixture
def runs(tmp_path):
    """Two finished studies, one that is not, and a smoke run."""
    fabricate(tmp_path / "runs" / "study-privacy-laptop-user-verdict", "privacy")
    fabricate(tmp_path / "runs" / "study-cost-laptop-user-verdict", "cost")
    fabricate(tmp_path / "runs" / "study-rank-laptop-user-verdict", "rank", cells=3)
    fabricate(tmp_path / "runs" / "study-init-laptop-smoke", "init", size="smoke")
    return tmp_path / "runs"


@pytest.fixture
def theory(tmp_path):
    """Finished measurements of the theory."""
    return fabricate_theory(tmp_path / "runs" / "study-theory-verdict")


@pytest.mark.long
def test_pages_are_those_of_the_committed_tables():
    assert page.main(["--check"]) == 0


def test_the_first_page_is_short():
    assert len(page.PAGE.read_text(encoding="utf-8").splitlines()) <= 250


def test_every_committed_study_asks_what_the_package_asks_today():
    for result in page.read_all(page.PAGE.with_suffix("")):
        then, now = result.grid, load_grid(result.grid.name, "laptop", "verdict", protocol=result.grid.protocol)
        assert then.study.model_dump(exclude={"scales"}) == now.study.model_dump(exclude={"scales"})
        assert then.study.scales["laptop"] == now.study.scales["laptop"] and dict(then.base) == dict(now.base)
        assert dict(then.first_tried) == dict(now.first_tried)
        manifest = yaml.safe_load((result.folder / page.MANIFEST).read_text(encoding="utf-8"))
        assert changed_keys(manifest["setting"], now) == [], "rows of other defaults: run the study anew"


def test_the_committed_theory_asks_what_the_package_asks_today():
    if (page.PAGE.with_suffix("") / page.THEORY).exists():
        config, result = read_theory(page.PAGE.with_suffix("") / page.THEORY)
        assert config == theory_config() and len(result.rows) == 2 * config.seeds


@pytest.mark.long
def test_numbers_on_the_page_are_those_of_the_runs(runs, tmp_path):
    target = tmp_path / "results.md"
    assert page.main(["--collect", str(runs), "--page", str(target)]) == 0
    text, result = target.read_text(), page.read_study(runs / "study-privacy-laptop-user-verdict")
    whole = (tmp_path / "results" / "privacy-user.md").read_text()
    assert page.main(["--check", "--page", str(target)]) == 0
    verdict = result.verdicts[0]
    assert f"| **{verdict.outcome}** | {verdict.mean:+.4f} | {verdict.low:+.4f} to {verdict.high:+.4f} | 5 |" in text
    assert all(v.to_text() in whole for v in result.verdicts) and page.size_in_words(result) in whole
    assert text.index("## Privacy") < text.index("## Cost") < text.index("## Rank") and "## Init" not in text
    assert "Only 3 of 40 runs that decide are finished. Details: [rank, user](results/rank-user.md)" in text
    for name in ("privacy", "cost"):
        answer = page.answer(page.read_study(runs / f"study-{name}-laptop-user-verdict"))
        opening = (tmp_path / "results" / f"{name}-user.md").read_text().splitlines()[2]
        assert f"**{answer}**" == opening and f"**{answer}**" in text
    for picture in (
        "privacy-user/metric-accuracy.svg",
        "privacy-user/claims-accuracy.svg",
        "cost-user/claims-ratio.svg",
    ):
        assert (tmp_path / "results" / picture).exists() and f"({picture})" in "".join(
            each.read_text() for each in (tmp_path / "results").glob("*.md")
        )
    assert "(results/privacy-user/metric-accuracy.svg)" in text


@pytest.mark.long
def test_claims_that_no_run_speaks_of_are_not_among_those_of_the_paper(runs, tmp_path):
    fabricate(runs / "study-heterogeneity-laptop-user-verdict", "heterogeneity", cells=0)
    page.main(["--collect", str(runs), "--page", str(tmp_path / "results.md")])
    text = (tmp_path / "results.md").read_text()
    claim = "Severe label skew costs LoRA more accuracy than FFA-LoRA"
    assert f"| {claim}" not in text and f"**{claim}" in text and "not measured" in text
    assert "None of 45 runs that decide are finished" in text


@pytest.mark.long
def test_a_studys_page_gives_the_digest_of_what_was_registered(runs, tmp_path):
    page.main(["--collect", str(runs), "--page", str(tmp_path / "results.md")])
    known = hashlib.sha256((tmp_path / "results" / "privacy-user" / "registration.yaml").read_bytes()).hexdigest()
    assert f"SHA-256 `{known}`" in (tmp_path / "results" / "privacy-user.md").read_text()


def test_numbers_of_the_theory_are_those_of_its_rows(theory, tmp_path):
    target = tmp_path / "results.md"
    assert page.main(["--collect", str(tmp_path / "runs"), "--page", str(target)]) == 0
    text, result = (tmp_path / "results" / "theory.md").read_text(), read_theory(tmp_path / "results" / "theory")[1]
    seeds = [theory["lora", seed] for seed in range(5)]
    missed = [100 * np.mean([row["discordance"]["total"] / 8 for row in rows[1:]]) for rows in seeds]
    share = [100 * rows[-1]["noise"]["share"] for rows in seeds]
    for values, unit in ((missed, "%"), (share, "%")):
        assert f"{np.mean(values):.3g} ± {stats.t.ppf(0.975, 4) * stats.sem(values):.2g}{unit}" in text
    spread = [rows[-1]["gradients"]["all"]["variation"] for rows in seeds]
    constant = [rows[-1]["smoothness"]["factors"] for rows in seeds]
    growth = [rows[-1]["smoothness"]["factors"] / rows[0]["smoothness"]["factors"] for rows in seeds]
    last = [rows[-1]["loss"] for rows in seeds]
    for logs in map(np.log, (spread, constant, growth, last)):
        half = stats.t.ppf(0.975, 4) * stats.sem(logs)
        low, high = np.exp(np.mean(logs) - half), np.exp(np.mean(logs) + half)
        assert f"{np.exp(np.mean(logs)):.3g} ({low:.2g} to {high:.2g})" in text
    run = read_theory(tmp_path / "results" / "theory")[0].runs()["lora"]
    alone = [discordance_by_noise(rows, run) for rows in seeds]
    times = [
        r["discordance"]["total"] / each[r["round"]] for rows, each in zip(seeds, alone, strict=True) for r in rows[1:]
    ]
    assert len(times) == 50 and f"| {span(times)} |" in text
    assert len(result.verdicts) == 5 and all(f"* {verdict}\n" in text for verdict in result.verdicts)
    assert all(table.caption in text for table in result.tables) and len(result.tables) == 5
    for plot in ("discordance", "noise", "smoothness", "gradients", "loss"):
        assert f"(theory/theory-{plot}.svg)" in text
        assert (tmp_path / "results" / "theory" / f"theory-{plot}.svg").exists()
    assert f"2 methods × 5 seeds, 10 runs; {10 * SECONDS / 60:.0f} minutes" in text and "cpu, 3 threads" in text
    assert "```\nffalora study theory --size verdict\n```" in text


def test_theory_of_another_size_or_unfinished_is_left_out_with_its_reason(tmp_path):
    fabricate_theory(tmp_path / "runs" / "smoke", theory_config(smoke=True))
    fabricate_theory(tmp_path / "runs" / "stopped")
    fabricate_theory(tmp_path / "runs" / "short")
    (tmp_path / "runs" / "stopped" / "config.yaml").unlink()
    table = tmp_path / "runs" / "short" / "results.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    short, smoke, stopped = page.collect_theory(tmp_path / "runs", tmp_path / "results")
    assert "9 of the 10 runs" in short and "no config.yaml" in stopped
    assert "verdict's size" in smoke and "--federation.rounds 5" in smoke
    assert not (tmp_path / "results").exists()


@pytest.mark.long
@pytest.mark.parametrize(("study", "column"), [("privacy-user", "accuracy"), ("theory", "discordance/total")])
def test_a_changed_number_is_noticed(runs, theory, tmp_path, capsys, study, column):
    target = tmp_path / "results.md"
    page.main(["--collect", str(runs), "--page", str(target)])
    table = tmp_path / "results" / study / "results.csv"
    rows = list(csv.DictReader(table.open()))
    rows[-1][column] = str(float(rows[-1][column]) + 1.0)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    assert page.main(["--check", "--page", str(target)]) == 1
    assert "out of date" in capsys.readouterr().out


def test_smoke_runs_and_fresh_seeds_are_left_out_with_their_reason(runs, tmp_path):
    grid = with_seeds(load_grid("alpha", "laptop", "verdict"), 2, first=50)
    write(StudyResult(grid, runs / "fresh"))
    said = page.collect(runs, tmp_path / "results")
    assert sorted(p.name for p in (tmp_path / "results").iterdir()) == ["cost-user", "privacy-user", "rank-user"]
    assert any("left out, laptop smoke" in line for line in said)
    assert any("seeds from 50" in line for line in said)


def test_committed_tables_come_back_as_they_were_and_over_nothing(runs, tmp_path):
    page.collect(runs, tmp_path / "results")
    said = page.restore(tmp_path / "results", tmp_path / "again")
    assert len(said) == 3 and page.restore(tmp_path / "results", tmp_path / "again") == []
    then, now = (page.read_study(top / "study-privacy-laptop-user-verdict") for top in (runs, tmp_path / "again"))
    assert [(r.cell, dict(r.numbers)) for r in then.results] == [(r.cell, dict(r.numbers)) for r in now.results]
    assert then.verdicts == now.verdicts and then.chosen == now.chosen


def test_tables_of_an_earlier_design_do_not_stay(runs, tmp_path):
    folder, target = runs / "study-privacy-laptop-user-verdict", tmp_path / "results" / "privacy-user"
    page.collect(runs, tmp_path / "results")
    before = {path.name for path in target.iterdir()}
    for name in (page.RESULTS, page.REGISTRATION):
        (folder / name).unlink()
    for place in folder.glob("cells/*/environment.json"):
        place.unlink()
    page.collect(runs, tmp_path / "results")
    assert before - {path.name for path in target.iterdir()} == {page.RESULTS, page.REGISTRATION, page.ENVIRONMENT}


@pytest.mark.long
def test_a_study_that_was_run_on_two_machines_names_both(runs, tmp_path):
    folder, target = runs / "study-privacy-laptop-user-verdict", tmp_path / "results.md"
    cells = sorted(folder.glob("cells/*/environment.json"))
    for i, place in enumerate(cells):
        known = {"device": "cpu", "threads": 1 + i % 2, "base_dtype": ("float32", "bfloat16")[i % 2]}
        place.write_text(json.dumps(known))
    page.main(["--collect", str(runs), "--page", str(target)])
    words = {"Device cpu, 1 or 2 threads, frozen base in float32 or bfloat16."}
    words |= {"Device cpu, 2 or 1 threads, frozen base in bfloat16 or float32."}
    assert any(each in (tmp_path / "results" / "privacy-user.md").read_text() for each in words)
    for place in cells[1:]:
        place.unlink()
    page.restore(tmp_path / "results", tmp_path / "again")
    (again,) = tmp_path.glob("again/*privacy*")
    assert sorted(page.environment_of(page.read_study(again))["threads"]) == [1, 2], "what tables alone say is kept"


def test_two_folders_of_one_study_are_refused(runs, tmp_path):
    shutil.copytree(runs / "study-cost-laptop-user-verdict", runs / "again")
    with pytest.raises(ValueError, match="two folders hold study cost-user"):
        page.collect(runs, tmp_path / "results")


def test_two_folders_of_theory_are_refused(theory, tmp_path):
    shutil.copytree(tmp_path / "runs" / "study-theory-verdict", tmp_path / "runs" / "again")
    with pytest.raises(ValueError, match="two folders hold study theory"):
        page.collect_theory(tmp_path / "runs", tmp_path / "results")


@pytest.mark.long
def test_every_remark_is_printed_and_one_about_nothing_is_refused(runs, theory, tmp_path):
    page.collect(runs, tmp_path / "results")
    page.collect_theory(runs, tmp_path / "results")
    (tmp_path / "results" / "remarks.yaml").write_text("privacy-user: As in the paper.\ntheory: As derived.\n")
    text = "".join(page.make_pages(tmp_path / "results").values())
    assert "why we think so.** As in the paper." in text and "why we think so.** As derived." in text
    (tmp_path / "results" / "remarks.yaml").write_text("privacy-paper: As in the paper.\n")
    with pytest.raises(ValueError, match="privacy-paper is no study here; there are privacy-user"):
        page.make_pages(tmp_path / "results")
