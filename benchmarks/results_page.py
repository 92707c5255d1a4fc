"""Writes docs/results.md from the committed tables of the studies: python benchmarks/results_page.py

``--collect runs`` first copies the tables of every finished study at laptop scale (``ffalora study NAME --size
verdict``) from its folder into docs/results/NAME. ``make results`` runs all studies, collects them and writes the page.
``--check`` writes nothing and fails where the page differs. What people have to say about a study is in
docs/results/remarks.yaml.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

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
ENVIRONMENT, REMARKS = "environment.json", "remarks.yaml"
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
    results = read_all(data)
    remarks = yaml.safe_load((data / REMARKS).read_text(encoding="utf-8")) or {} if (data / REMARKS).exists() else {}
    unknown = set(remarks) - set(study_names())
    if unknown:
        raise ValueError(f"{REMARKS}: {', '.join(sorted(unknown))} is no study; there are {', '.join(study_names())}")
    hours = sum(training_seconds(result) for result in results) / 3600
    took = f"{hours:.1f} hours of training for the studies below" if results else "hours"
    parts = [_HEAD.format(hours=took)]
    if not results:
        parts.append("No study has been run to its end and committed yet.\n")
        return "\n".join(parts)
    parts += ["## The paper's claims\n", _paper_table(results)]
    for result in results:
        parts.append(_section(result, data, str(remarks.get(result.grid.name, "")).strip()))
    return "\n".join(parts)


def draw(data: Path) -> None:
    """Draws every study's plots beside its tables."""
    for result in read_all(data):
        save_plots(study_plots(result), data / result.grid.name, formats=("svg",))


def _paper_table(results: Sequence[StudyResult]) -> str:
    rows = [
        (v.claim.says, link, f"**{v.outcome}**", contrast_text(v), range_text(v), str(v.seeds), p_text(v))
        for r in results
        for link in [f"[{r.grid.study.title}](#{_anchor(r.grid.study.title)})"]
        for v in r.verdicts
        if v.claim.paper
    ]
    head = ("claim", "study", "verdict", "contrast", "95% interval", "seeds", "p")
    return _markdown(Table("Contrasts are differences (of accuracy, unless a ratio ×) over seeds.", head, tuple(rows)))


def _section(result: StudyResult, data: Path, remark: str) -> str:
    grid = result.grid
    others = dict.fromkeys(c.metric for c in grid.study.claims if c.metric)
    parts = [f"## {grid.study.title}\n", f"{grid.study.question} ({grid.study.source.strip().rstrip('.')}.)\n"]
    parts.append("\n".join(f"* {_marked(verdict)}" for verdict in result.verdicts) + "\n")
    parts += [_markdown(metric_table(result, name)) for name in (None, *others)]
    plots = [plot for plot in study_plots(result) if plot.name.startswith(("metric", "claims"))]
    parts.append("\n".join(f"![{p.title}]({data.name}/{grid.name}/{p.name}.svg)" for p in plots) + "\n")
    if remark:
        parts.append(f"**What agrees, what does not, and why we think so.** {remark}\n")
    chosen = chosen_table(result)
    parts += [_markdown(table) for table in (chosen, cost_table(result)) if table is not None]
    parts.append(f"{size_in_words(result)} {_device(result)}{setting_in_words(grid)}\n")
    parts.append(f"```\n{study_command(grid)}\n```\n")
    return "\n".join(parts)


def _marked(verdict: Verdict) -> str:
    return f"{verdict.to_text()}{' *(the paper’s claim)*' if verdict.claim.paper else ''}"


def _device(result: StudyResult) -> str:
    path = result.folder / ENVIRONMENT
    if not path.exists():
        return ""
    known = json.loads(path.read_text(encoding="utf-8"))
    return f"Device {known.get('device', 'unknown')}, {known.get('threads', '?')} threads. "


def _markdown(table: Table) -> str:
    lines = [table.head, ("---",) * len(table.head), *table.rows]
    rows = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"{rows}\n\n{table.caption}\n"


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
        print("\n".join(collect(options.collect, data)) or f"--collect {options.collect}: no study in its folders")
    page.write_text(make_page(data), encoding="utf-8")
    draw(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
