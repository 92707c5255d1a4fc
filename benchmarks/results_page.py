"""Writes docs/results.md from the committed tables of the studies: python benchmarks/results_page.py

``--collect runs`` first copies the tables of every finished study at laptop scale (``ffalora study NAME --size
verdict``) from its folder into docs/results/NAME. ``make results`` runs all studies, collects them and writes the page.
``--check`` writes nothing and fails where the page differs. What people have to say about a study is in
docs/results/remarks.yaml.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from page_parts import (
    ENVIRONMENT,
    command_part,
    device_words,
    heading_part,
    list_part,
    plots_part,
    remark_part,
    table_part,
)
from theory_section import NAME as THEORY
from theory_section import collect_theory, committed_theory, draw_theory, theory_section

from ffalora.report.plots import save_plots
from ffalora.report.tables import Table
from ffalora.studies.claims import Verdict
from ffalora.studies.folder import read_study
from ffalora.studies.page import setting_in_words, size_in_words, study_command
from ffalora.studies.plots import study_plots
from ffalora.studies.runner import MANIFEST, RESULTS, TUNING, StudyResult
from ffalora.studies.study import study_names
from ffalora.studies.tables import (
    chosen_table,
    contrast_text,
    cost_table,
    metric_table,
    p_text,
    range_text,
    training_seconds,
)

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
REMARKS = "remarks.yaml"
#: Studies with claims of the paper come first, in the paper's order.
_ORDER = ("heterogeneity", "privacy", "alpha", "cost")
_HEAD = """# Results at laptop scale

What the studies of this package measured, on the embedded sentence encoder and movie-review sentences, which fit on two
processor cores. They are small: a verdict here speaks of this model and these data. `ffalora study NAME --scale paper`
asks the same of the models and data of the paper.

Every number below is written by one command from the tables in `docs/results/`; nothing is typed by hand but the
remarks. To measure everything again: `make results` (resumable; {hours}).

An interval is Student's 95% interval of the mean over seeds. A claim *holds* where the whole interval of its contrast
lies above the threshold, is *contradicted* where it lies below, and is *undecided* where it does neither. Values such
as learning rates are chosen for every method and condition on a validation split that no verdict uses.
"""


def collect(top: Path, data: Path) -> list[str]:
    """Copies the tables of the finished studies in the folders of ``top``; returns one line for each that it found.

    Raises:
        ValueError: two folders hold the same study.
    """
    said, taken = [], set()
    for manifest in sorted(top.glob(f"*/{MANIFEST}")):
        folder = manifest.parent
        result = read_study(folder)
        grid, asked = result.grid, len(_cells(result))
        if (grid.scale, grid.size) != ("laptop", "verdict"):
            said.append(f"{folder}: left out, {grid.scale} {grid.size}")
        elif len(result.results) < asked:
            said.append(f"{folder}: left out, {len(result.results)} of {asked} runs are finished")
        elif grid.name in taken:
            raise ValueError(f"--collect {top}: two folders hold study {grid.name}; move one of them away")
        else:
            taken.add(grid.name)
            _copy(result, data / grid.name)
            said.append(f"{folder}: {asked} runs")
    return said


def read_all(data: Path) -> list[StudyResult]:
    """The committed studies, those of the paper's claims first."""
    found = {path.parent.name: read_study(path.parent) for path in data.glob(f"*/{MANIFEST}")}
    order = [name for name in (*_ORDER, *study_names()) if name in found]
    return [found[name] for name in dict.fromkeys(order)]


def make_page(data: Path) -> str:
    """The whole page, from tables and remarks alone."""
    results, theory, remarks = read_all(data), committed_theory(data), _remarks(data)
    seconds = sum(training_seconds(result) for result in results) + (theory.seconds if theory else 0)
    took = f"{seconds / 3600:.1f} hours for the studies below" if seconds else "hours"
    parts = [_HEAD.format(hours=took)]
    if results:
        parts += ["## The paper's claims\n", _paper_table(results)]
    parts += [_section(result, data, remarks.get(result.grid.name, "")) for result in results]
    if theory:
        parts.append(theory_section(data, remarks.get(THEORY, "")))
    if len(parts) == 1:
        parts.append("No study has been run to its end and committed yet.\n")
    return "\n".join(parts)


def draw(data: Path) -> None:
    """Draws every study's plots beside its tables."""
    for result in read_all(data):
        save_plots(study_plots(result), data / result.grid.name, formats=("svg",))
    draw_theory(data)


def _remarks(data: Path) -> dict[str, str]:
    path, known = data / REMARKS, [*study_names(), THEORY]
    said = yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.exists() else {}
    if unknown := set(said) - set(known):
        raise ValueError(f"{REMARKS}: {', '.join(sorted(unknown))} is no study; there are {', '.join(known)}")
    return {name: str(remark).strip() for name, remark in said.items()}


def _paper_table(results: Sequence[StudyResult]) -> str:
    rows = [
        (v.claim.says, link, f"**{v.outcome}**", contrast_text(v), range_text(v), str(v.seeds), p_text(v))
        for r in results
        for link in [f"[{r.grid.study.title}](#{_anchor(r.grid.study.title)})"]
        for v in r.verdicts
        if v.claim.paper
    ]
    head = ("claim", "study", "verdict", "contrast", "95% interval", "seeds", "p")
    return table_part(Table("Contrasts are differences (of accuracy, unless a ratio ×) over seeds.", head, tuple(rows)))


def _section(result: StudyResult, data: Path, remark: str) -> str:
    grid, study = result.grid, result.grid.study
    others = dict.fromkeys(c.metric for c in study.claims if c.metric)
    plots = [plot for plot in study_plots(result) if plot.name.startswith(("metric", "claims"))]
    details = [table for table in (chosen_table(result), cost_table(result)) if table is not None]
    parts = [
        heading_part(study.title, study.question, study.source),
        list_part([_marked(verdict) for verdict in result.verdicts]),
        *[table_part(metric_table(result, name)) for name in (None, *others)],
        plots_part(plots, f"{data.name}/{grid.name}"),
        *remark_part(remark),
        *map(table_part, details),
        f"{size_in_words(result)} {device_words(result.folder)}{setting_in_words(grid)}\n",
        command_part(study_command(grid)),
    ]
    return "\n".join(parts)


def _marked(verdict: Verdict) -> str:
    return f"{verdict.to_text()}{' *(the paper’s claim)*' if verdict.claim.paper else ''}"


def _anchor(title: str) -> str:
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c == "-")


def _cells(result: StudyResult) -> list[tuple[str, str, int]]:
    grid = result.grid
    return [(m, c, seed) for m in grid.methods for c in grid.conditions for seed in grid.seeds]


def _copy(result: StudyResult, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST, RESULTS, TUNING):
        if (result.folder / name).exists():
            shutil.copyfile(result.folder / name, target / name)
    environment = result.results[0].folder / ENVIRONMENT
    if environment.exists():
        shutil.copyfile(environment, target / ENVIRONMENT)


def main(arguments: list[str] | None = None) -> int:
    """Command line; 1 where the page is out of date and ``--check`` was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", type=Path, metavar="RUNS", help="copy the tables of the studies in this folder")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page is out of date")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page; its tables lie in the folder of its name")
    options = parser.parse_args(arguments)
    page, data = options.page, options.page.with_suffix("")
    if options.check:
        is_true = page.exists() and page.read_text(encoding="utf-8") == make_page(data)
        print("up to date" if is_true else f"{page.name} is out of date: python benchmarks/results_page.py")
        return int(not is_true)
    if options.collect:
        said = [*collect(options.collect, data), *collect_theory(options.collect, data)]
        print("\n".join(said) or f"--collect {options.collect}: no study in its folders")
    page.write_text(make_page(data), encoding="utf-8")
    draw(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
