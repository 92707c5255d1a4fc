"""The page of a study: question, verdicts, tables, plots, privacy, how to do it again, in one file."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..config import Config
from ..config.values import NAMED_ELSEWHERE
from ..files.atomic import write_atomically
from ..report.page import Finding, Page, describe_run, render
from ..report.plots import save_plots
from ..report.tables import flatten
from .claims import Verdict
from .folder import environment_of, values_in_words
from .grid import Grid, load_grid
from .labels import condition_labels
from .plan import time_in_words
from .plots import study_plots
from .protocol import load_protocol, usual_protocol
from .registration import digest, known_before, read_power
from .results import CellResult, StudyResult
from .study import load_study
from .tables import chosen_table, claims_table, cost_table, metric_table, pilot_table, power_table, training_seconds

FILE = "study.html"
_FEWEST = (
    " The number of seeds is the fewest of a verdict: the runs that chose values say nothing of these claims' variance."
)


def write_page(result: StudyResult) -> Path:
    """Writes ``study.html`` and ``plots/`` into the study's folder, beside ``results.csv``; returns the page's path."""
    page = study_page(result)
    save_plots(page.plots, result.folder / "plots")
    write_atomically(result.folder / FILE, render(page).encode())
    return result.folder / FILE


def study_page(result: StudyResult) -> Page:
    """The page of what is finished of a study."""
    grid, verdicts = result.grid, result.verdicts
    others = dict.fromkeys(v.claim.metric for v in verdicts if v.claim.metric and v.outcome != "not measured")
    details = [
        claims_table(verdicts),
        pilot_table(result),
        power_table(read_power(result.folder)),
        chosen_table(result),
        cost_table(result),
    ]
    return Page(
        title=f"Study: {grid.study.title}",
        verdict=answer(result),
        asked=[grid.study.question, f"Source: {grid.study.source}", size_in_words(result), setting_in_words(grid)],
        findings=[finding(verdict) for verdict in verdicts],
        tables=[metric_table(result), *(metric_table(result, name) for name in others)],
        plots=study_plots(result),
        details=[table for table in details if table is not None],
        statements=_statements(result),
        commands=[study_command(grid), *_alone(result)],
        environment={key: values_in_words(value) for key, value in flatten(environment_of(result)).items()},
    )


def answer(result: StudyResult) -> str:
    """What the first claim came to, and how many of the others were decided, in one sentence."""
    first, *others = result.verdicts
    decided = sum(v.outcome in ("holds", "contradicted") for v in others)
    more = f" Of {len(others)} further claims {decided or 'none'} {'is' if decided == 1 else 'are'} decided."
    return first.to_text() + (more if others else "")


def finding(verdict: Verdict) -> Finding:
    """The verdict in one sentence, marked where the claim is the paper's."""
    return Finding(verdict.to_text(), verdict.outcome, "claim of the paper" if verdict.claim.paper else "")


def size_in_words(result: StudyResult) -> str:
    """Scale, size, how many runs are finished and what they took."""
    grid = result.grid
    done = len(result.results)
    runs = f"{done} runs" if result.is_finished else f"only {done} of {result.asked} runs are finished"
    seeds = f"{len(grid.seeds)} seed{'s' if len(grid.seeds) > 1 else ''}"
    chosen = f", {len(result.tuning)} more to choose values on the validation split" if result.tuning else ""
    return (
        f"Scale {grid.scale}, size {grid.size}, by {load_protocol(grid.protocol).says}: {len(grid.places())} cells × "
        f"{seeds}, {runs}{chosen}; {time_in_words(training_seconds(result))} of training.{_registered(result)}"
    )


def _registered(result: StudyResult) -> str:
    found = digest(result.folder)
    if found is None:
        return ""
    fewest = "" if read_power(result.folder) or not result.grid.is_powered else _FEWEST
    known = known_before(result.folder)
    but = f", but {known} of them, which other studies share," if known else ""
    return f" Claims, values and seeds were registered before these runs{but} (SHA-256 {found[:16]}…).{fewest}"


def study_command(grid: Grid) -> str:
    """The shell line that repeats the study, with what was changed on the command line."""
    command = ["ffalora", "study", grid.name, "--scale", grid.scale, "--size", grid.size]
    base = grid.study.scales[grid.scale].base
    if base != load_study(grid.name).scales[grid.scale].base:
        command += ["--base", base]
    if grid.protocol != usual_protocol(grid.scale):
        command += ["--protocol", grid.protocol]
    usual = load_grid(grid.name, grid.scale, grid.size, base=base, protocol=grid.protocol)
    if not grid.is_powered and (usual.is_powered or len(usual.seeds) != len(grid.seeds)):
        command += ["--seeds", str(len(grid.seeds))]
    if grid.seeds[0]:
        command += ["--first-seed", str(grid.seeds[0])]
    return shlex.join([*command, *changed_flags(usual.base, grid.base)])


def changed_flags(usual: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The flags that make ``now`` of ``usual``; both nested."""
    before, after = _by_flag(usual), _by_flag(now)
    return [
        word
        for key, value in after.items()
        if key not in before or before[key] != value
        for word in (f"--{key}", _flag_text(value))
    ]


def _by_flag(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values by the flag that sets them: mappings whose keys are names of others stay whole."""
    found = flatten(values)
    for key in NAMED_ELSEWHERE:
        section, _, name = key.partition(".")
        if held := values.get(section, {}).get(name):
            found = {k: v for k, v in found.items() if not k.startswith(f"{key}.")} | {key: held}
    return found


def _flag_text(value: Any) -> str:
    """One line of YAML that is read as ``value``."""
    whole = json.loads(json.dumps(value))  # a list that is held twice has an alias in YAML
    return yaml.safe_dump(whole, default_flow_style=True, width=math.inf, allow_unicode=True).split("\n")[0]


def setting_in_words(grid: Grid) -> str:
    """What all cells share, told by one of them."""
    cell = grid.verdict_cells(grid.first_chosen())[0]
    config: Config = grid.config(cell)
    label = condition_labels(grid)[cell.condition]
    about = describe_run(config.model_dump())
    return f"Runs differ in method, {grid.study.axis} and seed alone. That of {cell.method}, {label}: {about}"


def _representatives(result: StudyResult) -> dict[str, CellResult]:
    """One run of each condition, by its label: of FFA-LoRA where it takes part."""
    labels = condition_labels(result.grid)
    found: dict[str, CellResult] = {}
    for r in sorted(result.results, key=lambda r: (r.cell.method != "ffa", r.cell.seed)):
        found.setdefault(r.cell.condition, r)
    return {f"{found[c].cell.method}, {labels[c]}, seed {found[c].cell.seed}": found[c] for c in labels if c in found}


def _statements(result: StudyResult) -> dict[str, str]:
    """The privacy statement of one run of each condition; equal ones once."""
    texts = {label: _read(r.folder / "privacy.txt") for label, r in _representatives(result).items()}
    return {
        label: text for i, (label, text) in enumerate(texts.items()) if text and text not in list(texts.values())[:i]
    }


def _alone(result: StudyResult) -> list[str]:
    """How to repeat one run of the study; empty where the run folders are not at hand."""
    for r in _representatives(result).values():
        if (r.folder / "config.yaml").exists():
            return [f"ffalora simulate {shlex.quote(str(r.folder / 'config.yaml'))}  # one run alone"]
    return []


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
