"""The page: one HTML file that needs no network, readable on a phone, light and dark."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from .answers import answers_table, before_and_after, what_was_learned
from .baselines import baseline_table, verdicts
from .plots import Plot, inline_svg, run_plots, save_plots
from .runs import ReportError, Run, by_label, data_title, method_title, read_top_config
from .tables import (
    Table,
    difference_table,
    flatten,
    interval_text,
    largest_epsilon,
    metric_names,
    metric_title,
    result_table,
    spent_text,
)
from .templates import fill

FILE = "report.html"
_ENVIRONMENT = {
    "base_dtype": "number format of the frozen base",
    "cached_layers": "lower layers computed once a sample",
}
_MOST_NAMED = 8


@dataclass(frozen=True)
class Finding:
    """What was found about one claim: a sentence, its outcome in a word or two, and a remark on the claim."""

    text: str
    outcome: str
    remark: str = ""


@dataclass(frozen=True)
class Page:
    """What a page shows, from top to bottom; empty parts are left out.

    Attributes:
        asked: paragraphs: the question, or what the run was to do.
        verdict: the answer in a sentence or two; findings: one sentence for each claim that was tested.
        tables: beside the plots; details: below them.
        statements: text blocks by heading (privacy statements).
        commands: shell lines that repeat the result, with the configurations that they need in ``configs``.
        configs: YAML by file name.
        environment: names and values.
    """

    title: str
    asked: Sequence[str]
    tables: Sequence[Table]
    plots: Sequence[Plot]
    verdict: str = ""
    findings: Sequence[Finding] = ()
    details: Sequence[Table] = ()
    statements: dict[str, str] = field(default_factory=dict)
    commands: Sequence[str] = ()
    configs: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)


def render(page: Page) -> str:
    """The page as HTML."""
    svgs = [(plot.title, Markup(inline_svg(plot))) for plot in page.plots]
    return fill("page.html", page=page, svgs=svgs, blocks=statement_blocks, nonce=None)


def write_report(runs: Sequence[Run], folder: str | Path) -> Path:
    """Writes ``report.html`` and ``plots/`` into ``folder`` and returns the page's path.

    Raises:
        ReportError: the folder or its disk does not take them.
    """
    folder = Path(folder)
    page = run_page(runs)
    target = folder / FILE
    draft = target.with_name(FILE + ".part")
    try:
        save_plots(page.plots, folder / "plots")
        draft.write_text(render(page), encoding="utf-8")
        draft.replace(target)
    except OSError as error:
        raise ReportError(
            f"the page cannot be written into {folder}: {error.strerror or error}. The runs are complete: make room, "
            f"then `ffalora report {folder}`"
        ) from error
    return target


def run_page(runs: Sequence[Run]) -> Page:
    """The page of finished runs, side by side."""
    groups, configs = by_label(runs), _configs(runs)
    found = (
        baseline_table(runs),
        before_and_after(runs),
        result_table(runs),
        answers_table(runs),
        difference_table(runs),
    )
    return Page(
        title=_title(runs, list(groups)),
        asked=list(
            dict.fromkeys(
                describe_run(group[0].config, [str(one["client"]) for one in group[0].partition])
                for group in groups.values()
            )
        ),
        verdict=" ".join([*verdicts(runs), *what_was_learned(runs)]),
        tables=[table for table in found if table is not None],
        plots=run_plots(runs),
        statements={
            _statement_name(label, group): group[0].privacy_text
            for label, group in groups.items()
            if group[0].privacy_text
        },
        commands=[f"ffalora simulate {name}" for name in configs],
        configs=configs,
        environment=_in_words(flatten(runs[0].environment)),
    )


def _title(runs: Sequence[Run], labels: list[str]) -> str:
    """What was done to what, and for a single method what came of it."""
    privacy, data = runs[0].config["privacy"], data_title(runs[0].config)
    is_private = privacy["unit"] != "none" and privacy["noise_multiplier"] != 0
    kind = "private fine-tuning" if is_private else "fine-tuning"
    if is_private and privacy["noise"] != "secure":
        kind = "simulated private fine-tuning"
    if len(labels) > 1:
        names = [method_title(label) for label in labels]
        shown = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) < 4 else f"{len(names)} methods"
        asked = f"Was {kind} on {data} worth it? " if is_private and any(run.baselines for run in runs) else ""
        return f"{asked}{shown} side by side" + ("" if asked else f": {kind} on {data}")
    names = metric_names(runs)
    values = [run.metrics[names[0]] for run in runs if names[0] in run.metrics] if names else []
    reached = f": {metric_title(names[0])} {interval_text(values)}" if values else ""
    spent = spent_text(runs)
    at = f" at ε = {spent}" if largest_epsilon(runs) is not None else f", ε {spent}"
    return f"{kind.capitalize()} on {data}{reached}" + (at if is_private else "")


def statement_blocks(text: str) -> list[str | Table]:
    """A privacy statement in paragraphs; its table of clients as one, where it is one."""
    found: list[str | Table] = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = [re.split(r"\s{2,}", line.strip()) for line in block.splitlines()]
        is_table = len(lines) > 1 and lines[0][0] == "client" and {len(line) for line in lines} == {len(lines[0])}
        found.append(Table("", tuple(lines[0]), tuple(map(tuple, lines[1:]))) if is_table else block)
    return found


def _in_words(environment: Mapping[str, Any]) -> dict[str, Any]:
    return {_ENVIRONMENT.get(name, name.removeprefix("packages.")): value for name, value in environment.items()}


def describe_run(config: dict[str, Any], clients_names: Sequence[str] = ()) -> str:
    """What a configuration asks for, in two or three sentences; without what methods usually differ in."""
    data, clients, rounds = config["data"], config["clients"], config["federation"]
    privacy, optimizer = config["privacy"], config["optimizer"]
    split = {
        "iid": "split evenly at random",
        "labels": f"split by label {clients['proportions']}",
        "dirichlet": f"split by Dirichlet({clients['beta']:g}) over labels",
        "quantity": "in unequal shares",
        "column": f"one for each {clients['column']}",
    }
    count = clients["count"] or len(clients_names or clients["proportions"] or clients["quantities"] or []) or "several"
    who = "at one site" if count == 1 else f"at {count} clients, {split[clients['partition']]}"
    if clients["partition"] == "column" and 1 < len(clients_names) <= _MOST_NAMED:
        who += f" ({', '.join(clients_names)})"
    asked = (
        f"Fine-tune {config['model']['name']} on {data_title(config)} ({data['task']}) {who}: "
        f"{rounds['rounds']} rounds of {rounds['local_steps']} local steps, batch {optimizer['batch_size']}. "
        f"Metrics are of the {data['evaluate_on']} split. "
    )
    if privacy["unit"] == "none":
        return asked + "No privacy was asked for."
    target, sigma = privacy["target_epsilon"], privacy["noise_multiplier"]
    if sigma == 0:
        return (
            asked + f"Gradients are clipped to {privacy['max_grad_norm']:g} and no noise is added: nothing is private."
        )
    budget = f"at most ε = {target:g}" if target is not None else f"noise multiplier {sigma:g}"
    terms = (
        f"{budget} at δ = {privacy['delta']:g} for all rounds together, clipping norm {privacy['max_grad_norm']:g}, "
        f"{privacy['accountant'].upper()} accountant."
    )
    unit = f"every {privacy['unit']} of every client"
    if privacy["noise"] == "secure":
        return asked + f"{unit.capitalize()} is protected: {terms}"
    return asked + (
        "A simulation, in which nothing is protected: its noise comes from a seed, and who has the seed or the run "
        f"folder can subtract it. With secure noise (privacy.noise: secure) {unit} would be protected: {terms}"
    )


def _configs(runs: Sequence[Run]) -> dict[str, str]:
    """By file name, the configurations that repeat the runs: a folder's own where it has one, else its runs'."""
    found: dict[str, dict[str, Any]] = {}
    for top in dict.fromkeys(run.top for run in runs):
        inside = {run.label: run.config for run in runs if run.top == top}
        whole = read_top_config(top)
        found |= inside if whole is None else {top.resolve().name: whole.model_dump(mode="json")}
    names = {name: "config" if len(found) == 1 else name.replace("/", "-") for name in found}
    return {f"{names[n]}.yaml": yaml.safe_dump(c, sort_keys=False, allow_unicode=True) for n, c in found.items()}


def _statement_name(label: str, group: Sequence[Run]) -> str:
    return label if len(group) == 1 else f"{label}, seed {group[0].config['seed']}"
