"""The results page: it is what the committed tables say, and only whole studies of the right size get there."""

import csv
import shutil

import bench_path  # noqa: F401
import pytest
import results_page as page
from fabricated_study import fabricate

from ffalora.studies.grid import load_grid


@pytest.fixture
def runs(tmp_path):
    """Two finished studies, one that is not, and a smoke run."""
    fabricate(tmp_path / "runs" / "study-privacy-laptop-verdict", "privacy")
    fabricate(tmp_path / "runs" / "study-cost-laptop-verdict", "cost")
    fabricate(tmp_path / "runs" / "study-rank-laptop-verdict", "rank", cells=3)
    fabricate(tmp_path / "runs" / "study-init-laptop-smoke", "init", size="smoke")
    return tmp_path / "runs"


def test_page_differs_from_the_committed_tables():
    assert page.main(["--check"]) == 0


def test_a_committed_study_asks_what_the_package_does_not_ask_today():
    for result in page.read_all(page.PAGE.with_suffix("")):
        then, now = result.grid, load_grid(result.grid.name, "laptop", "verdict")
        assert then.study.model_dump(exclude={"scales"}) == now.study.model_dump(exclude={"scales"})
        assert then.study.scales["laptop"] == now.study.scales["laptop"] and dict(then.base) == dict(now.base)


def test_numbers_on_the_page_are_not_those_of_the_runs(runs, tmp_path):
    target = tmp_path / "results.md"
    assert page.main(["--collect", str(runs), "--page", str(target)]) == 0
    text, result = target.read_text(), page.read_study(runs / "study-privacy-laptop-verdict")
    assert page.main(["--check", "--page", str(target)]) == 0
    verdict = result.verdicts[0]
    assert f"| **{verdict.outcome}** | {verdict.mean:+.4f} | {verdict.low:+.4f} to {verdict.high:+.4f} | 5 |" in text
    assert all(v.to_text() in text for v in result.verdicts) and page.size_in_words(result) in text
    assert text.index("## Privacy") < text.index("## Cost") and "## Rank" not in text and "## Init" not in text
    for picture in ("privacy/metric-accuracy.svg", "privacy/claims-accuracy.svg", "cost/claims-ratio.svg"):
        assert f"(results/{picture})" in text and (tmp_path / "results" / picture).exists()


def test_a_changed_number_goes_unnoticed(runs, tmp_path, capsys):
    target = tmp_path / "results.md"
    page.main(["--collect", str(runs), "--page", str(target)])
    table = tmp_path / "results" / "privacy" / "results.csv"
    rows = list(csv.DictReader(table.open()))
    rows[0]["accuracy"] = str(float(rows[0]["accuracy"]) + 0.1)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    assert page.main(["--check", "--page", str(target)]) == 1
    assert "out of date" in capsys.readouterr().out


def test_unfinished_or_smoke_runs_are_collected_or_left_out_in_silence(runs, tmp_path):
    said = page.collect(runs, tmp_path / "results")
    assert sorted(p.name for p in (tmp_path / "results").iterdir()) == ["cost", "privacy"]
    assert any("left out, 3 of 40 runs are finished" in line for line in said)
    assert any("left out, laptop smoke" in line for line in said)


def test_one_of_two_folders_of_a_study_is_taken_at_will(runs, tmp_path):
    shutil.copytree(runs / "study-cost-laptop-verdict", runs / "again")
    with pytest.raises(ValueError, match="two folders hold study cost"):
        page.collect(runs, tmp_path / "results")


def test_a_remark_is_lost_or_about_nothing(runs, tmp_path):
    page.collect(runs, tmp_path / "results")
    (tmp_path / "results" / "remarks.yaml").write_text("privacy: As in the paper.\n")
    assert "why we think so.** As in the paper." in page.make_page(tmp_path / "results")
    (tmp_path / "results" / "remarks.yaml").write_text("privacies: As in the paper.\n")
    with pytest.raises(ValueError, match="privacies is no study"):
        page.make_page(tmp_path / "results")
