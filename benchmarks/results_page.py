"""Writes docs/results.md and the pages behind it: python benchmarks/results_page.py

They follow from the committed tables of the studies alone. ``--collect runs`` first copies the tables of every study at
laptop scale (``ffalora study NAME --size verdict``), as far as it is finished, from its folder into
docs/results/NAME-PROTOCOL; ``--restore runs`` copies them back, so that studies go on from committed rows. ``make
results`` restores, runs all studies, collects them and writes the pages. ``--check`` writes nothing and fails where a
page differs. What people have to say about a study is in docs/results/remarks.yaml.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from page_parts import (
    answer_part,
    command_part,
    device_words,
    list_part,
    plots_part,
    question_part,
    remark_part,
    table_part,
)
from theory_section import NAME as THEORY
from theory_section import collect_theory, committed_theory, draw_theory, theory_page, theory_section

from ffalora.files.numbers import to_json
from ffalora.report.plots import save_plots
from ffalora.report.tables import Table
from ffalora.runs.folder import ENVIRONMENT
from ffalora.studies.claims import Verdict
from ffalora.studies.folder import environment_of, read_study
from ffalora.studies.page import answer, setting_in_words, size_in_words, study_command
from ffalora.studies.plots import study_plots
from ffalora.studies.protocol import load_protocol
from ffalora.studies.registration import REGISTRATION, digest, read_power
from ffalora.studies.results import MANIFEST, RESULTS, TUNING, StudyResult
from ffalora.studies.study import study_names, tier_names
from ffalora.studies.tables import (
    chosen_table,
    contrast_text,
    cost_table,
    metric_table,
    p_text,
    pilot_table,
    power_table,
    range_text,
    training_seconds,
)

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
REMARKS = "remarks.yaml"
_HEAD = """# Results at laptop scale

What the studies of this package measured, on the embedded sentence encoder and movie-review sentences, which fit on two
processor cores. They are small: a verdict here speaks of this model and these data. `ffalora study NAME --scale paper`
asks the same of the models and data of the paper.

Every study can be run by two protocols: *user*, the package's defaults (a trained head on three layers, normalised
rates), and *paper*, the paper's (a frozen head, plain SGD, rates of its grid). Values are chosen by
the mean of three validation seeds from grids that grow at their edges. Then claims, values and the number of seeds,
which follows from the variance seen so far (the fewest, five, where no claim's is seen), are written to a file (its
digest is on the study's page), and the runs that decide are begun. A claim *holds* or is *contradicted* where the
paired t-test says so with p < 0.05 after Holm's correction for the claims of its study; else it is *undecided*.
Intervals are Student's 95% intervals over seeds.

Every number below is written by one command from the tables in `docs/results/`; nothing is typed by hand but the
remarks. `make results` goes on from these tables and measures what they lack. To measure a study again: the command at
the end of its page, with `--output` and an empty folder ({hours}).
"""


def collect(top: Path, data: Path) -> list[str]:
    """Copies the tables of the studies in the folders of ``top``; returns one line for each that it found.

    Raises:
        ValueError: two folders hold the same study.
    """
    said, taken = [], set()
    for manifest in sorted(top.glob(f"*/{MANIFEST}")):
        folder = manifest.parent
        result = read_study(folder)
        grid, name = result.grid, _name(result)
        if (grid.scale, grid.size, grid.seeds[0]) != ("laptop", "verdict", 0):
            said.append(f"{folder}: left out, {grid.scale} {grid.size}, seeds from {grid.seeds[0]}")
        elif not result.tuning and not result.results:
            said.append(f"{folder}: left out, nothing is finished")
        elif name in taken:
            raise ValueError(f"--collect {top}: two folders hold study {name}; move one of them away")
        else:
            taken.add(name)
            _copy(result, data / name)
            done = f"{len(result.results)} of {result.asked} runs"
            said.append(f"{folder}: {done}, {len(result.tuning)} to choose values")
    return said


def restore(data: Path, top: Path) -> list[str]:
    """Copies the committed tables of every study into the folder in which ``make results`` runs it, where that is not
    there; returns one line for each.
    """
    said = []
    for result in read_all(data):
        grid = result.grid
        target = top / f"study-{grid.name}-{grid.scale}-{grid.protocol}-{grid.size}"
        if not target.exists():
            shutil.copytree(result.folder, target, ignore=shutil.ignore_patterns("*.svg"))
            said.append(f"{target}: {len(result.tuning) + len(result.results)} runs")
    return said


def read_all(data: Path) -> list[StudyResult]:
    """The committed studies, those of the paper's claims first."""
    found = [read_study(path.parent) for path in sorted(data.glob(f"*/{MANIFEST}"))]
    order = [*tier_names("A"), *tier_names("B")]
    return sorted(found, key=lambda each: (order.index(each.grid.name), each.grid.protocol != "user"))


def make_pages(data: Path) -> dict[Path, str]:
    """All pages by their file, from tables and remarks alone: the first, beside ``data``, and one a study in it."""
    results, theory = read_all(data), committed_theory(data)
    remarks = _remarks(data, [*map(_name, results), THEORY])
    seconds = sum(training_seconds(result) for result in results) + (theory.seconds if theory else 0)
    parts = [_HEAD.format(hours=f"{seconds / 3600:.1f} hours for all that is below" if seconds else "hours")]
    if results:
        parts += ["## The paper's claims\n", _paper_table(results)]
    if missing := [name for name in study_names() if name not in {r.grid.name for r in results}]:
        parts.append(f"Not run yet in this design: {', '.join(missing)}.\n")
    pages = {}
    for result in results:
        parts.append(_section(result, data))
        pages[data / f"{_name(result)}.md"] = _details(result, remarks.get(_name(result), ""))
    if theory:
        parts.append(theory_section(data))
        pages[data / f"{THEORY}.md"] = theory_page(data, remarks.get(THEORY, ""))
    return {data.with_suffix(".md"): "\n".join(parts)} | pages


def draw(data: Path) -> None:
    """Draws every study's plots beside its tables."""
    for result in read_all(data):
        save_plots(_plots(result), result.folder, formats=("svg",))
    draw_theory(data)


def _remarks(data: Path, known: Sequence[str]) -> dict[str, str]:
    path = data / REMARKS
    said = yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.exists() else {}
    if unknown := set(said) - set(known):
        raise ValueError(f"{REMARKS}: {', '.join(sorted(unknown))} is no study here; there are {', '.join(known)}")
    return {name: str(remark).strip() for name, remark in said.items()}


def _paper_table(results: Sequence[StudyResult]) -> str:
    rows = [
        (v.claim.says, link, f"**{v.outcome}**", contrast_text(v), range_text(v), str(v.seeds), p_text(v))
        for r in results
        for link in [f"[{r.grid.study.title}, {r.grid.protocol}](#{_anchor(r)})"]
        for v in r.verdicts
        if v.claim.paper and v.seeds
    ]
    head = ("claim", "study, protocol", "verdict", "contrast", "95% interval", "seeds", "p")
    return table_part(Table("Contrasts are differences (of accuracy, unless a ratio ×) over seeds.", head, tuple(rows)))


def _section(result: StudyResult, data: Path) -> str:
    """The study on the first page: its answer, one picture, and where the rest is."""
    grid, folder = result.grid, f"{data.name}/{_name(result)}"
    plots = _plots(result)
    parts = [
        f"## {_title(result)}\n",
        answer_part(answer(result)),
        plots_part(plots[:1], folder),
        f"{_unfinished(result)}Details: [{grid.name}, {grid.protocol}]({folder}.md).\n",
    ]
    return "\n".join(parts)


def _details(result: StudyResult, remark: str) -> str:
    """The study's own page."""
    grid, study = result.grid, result.grid.study
    others = dict.fromkeys(c.metric for c in study.claims if c.metric)
    power = power_table(read_power(result.folder))
    details = [pilot_table(result), power, chosen_table(result), cost_table(result)]
    tables = [metric_table(result, name) for name in (None, *others)] if result.results else []
    known = digest(result.folder)
    parts = [
        f"# {_title(result)}\n",
        answer_part(answer(result)),
        plots_part(_plots(result), _name(result)),
        question_part(study.question, study.source),
        list_part([_marked(verdict) for verdict in result.verdicts]),
        *map(table_part, tables),
        *remark_part(remark),
        *[table_part(table) for table in details if table is not None],
        f"{size_in_words(result)} {device_words(result.folder)}{setting_in_words(grid)}\n",
        f"Registration: `{REGISTRATION}`, SHA-256 `{known}`.\n" if known else "Nothing is registered yet.\n",
        command_part(study_command(grid)),
    ]
    return "\n".join(parts)


def _plots(result: StudyResult) -> list:
    plots = study_plots(result)
    return [plot for plot in plots if plot.name.startswith(("metric", "claims", "tuning"))]


def _unfinished(result: StudyResult) -> str:
    done = f"Only {len(result.results)}" if result.results else "None"
    return "" if result.is_finished else f"{done} of {result.asked} runs that decide are finished. "


def _title(result: StudyResult) -> str:
    return f"{result.grid.study.title}, by {load_protocol(result.grid.protocol).says}"


def _name(result: StudyResult) -> str:
    return f"{result.grid.name}-{result.grid.protocol}"


def _marked(verdict: Verdict) -> str:
    return f"{verdict.to_text()}{' *(the paper’s claim)*' if verdict.claim.paper else ''}"


def _anchor(result: StudyResult) -> str:
    return "".join(c for c in _title(result).lower().replace(" ", "-") if c.isalnum() or c == "-")


def _copy(result: StudyResult, target: Path) -> None:
    """Tables of an earlier design, which the study has none of, are taken away."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST, REGISTRATION, RESULTS, TUNING):
        if (result.folder / name).exists():
            shutil.copyfile(result.folder / name, target / name)
        else:
            (target / name).unlink(missing_ok=True)
    if environment := environment_of(result):
        (target / ENVIRONMENT).write_text(to_json(environment, indent=2), encoding="utf-8")
    else:
        (target / ENVIRONMENT).unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line; 1 where a page is out of date and ``--check`` was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", type=Path, metavar="RUNS", help="copy the tables of the studies in this folder")
    parser.add_argument("--restore", type=Path, metavar="RUNS", help="copy committed tables there, and nothing else")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is out of date")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page; its tables lie in the folder of its name")
    options = parser.parse_args(arguments)
    data = options.page.with_suffix("")
    if options.check:
        wanted = make_pages(data)
        old = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
        old += [path for path in data.glob("*.md") if path not in wanted]
        print(
            "\n".join(f"{path.name} is out of date: python benchmarks/results_page.py" for path in old) or "up to date"
        )
        return int(bool(old))
    if options.restore:
        print("\n".join(restore(data, options.restore)) or f"--restore {options.restore}: nothing to copy")
        return 0
    if options.collect:
        said = [*collect(options.collect, data), *collect_theory(options.collect, data)]
        print("\n".join(said) or f"--collect {options.collect}: no study in its folders")
    for path, text in make_pages(data).items():
        path.write_text(text, encoding="utf-8")
    draw(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
