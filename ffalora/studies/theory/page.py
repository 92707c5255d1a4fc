"""``ffalora study theory``: the measurements, and their page."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from ...config import Config, ConfigError, to_yaml
from ...files.atomic import write_atomically
from ...files.numbers import to_json
from ...models import choose_device
from ...report.page import Finding, Page, describe_run, render
from ...report.plots import save_plots
from ...report.tables import flatten
from ...runs.environment import describe_environment
from ...runs.folder import ENVIRONMENT
from ..page import FILE, changed_flags
from ..plan import time_in_words
from ..results import RESULTS
from .folder import to_csv
from .study import CONFIG, TheoryResult, measure, theory_config

TITLE = "Theory"
QUESTION = "What do averaging, noise and curvature do to LoRA's two trained factors, and what to FFA-LoRA's one?"
SOURCE = "Sun et al., ICLR 2024, and what follows from its formulas; docs/theory.md derives every quantity."


def run_theory(
    config: Config, folder: Path, resume: bool = False, progress: bool = True, command: str = ""
) -> TheoryResult:
    """Measures what is not measured yet and writes ``results.csv``, ``study.html`` and ``plots/`` into ``folder``.

    Args:
        config: see :func:`ffalora.studies.theory.theory_config`.
        folder: made if missing; holds no other measurements unless ``resume``.
        command: the shell line that repeats it, for the page.
        progress: show a bar over rounds with the time left.

    Raises:
        ConfigError: a configuration that the formulas do not describe, or a folder with something else.
    """
    if (folder / CONFIG).exists() and not resume:
        raise ConfigError(f"--output {folder} holds measurements already; give --resume to go on, or another folder")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ENVIRONMENT).exists():
        environment = describe_environment(choose_device(config.device))
        write_atomically(folder / ENVIRONMENT, to_json(environment, indent=2).encode())
    result = measure(config, folder, progress)
    write_atomically(folder / RESULTS, to_csv(result.rows).encode())
    write_atomically(folder / CONFIG, to_yaml(config).encode())
    page = theory_page(result, config, command, json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8")))
    save_plots(page.plots, folder / "plots")
    write_atomically(folder / FILE, render(page).encode())
    return result


def theory_page(result: TheoryResult, config: Config, command: str, environment: dict[str, Any]) -> Page:
    """Verdicts, tables and plots of the measurements, with how to repeat them and where they were made."""
    return Page(
        title=f"Study: {TITLE}",
        asked=[QUESTION, f"Source: {SOURCE}", size_in_words(result, config), *settings_in_words(config)],
        findings=[Finding(sentence, "measured") for sentence in result.verdicts],
        tables=result.tables[:1],
        plots=result.plots,
        details=result.tables[1:],
        commands=[command] if command else [],
        configs={CONFIG: to_yaml(config)},
        environment=flatten(environment),
    )


def size_in_words(result: TheoryResult, config: Config) -> str:
    """How many runs there are and what they took."""
    methods = len(config.runs())
    runs = f"{methods} methods × {config.seeds} seed{'s' * (config.seeds != 1)}, {len(result.rows)} runs"
    return f"{runs}; {time_in_words(result.seconds)} of training and measuring."


def settings_in_words(config: Config) -> list[str]:
    """What the methods are asked to do, one text where they do not differ in it."""
    return list(dict.fromkeys(describe_run(run.model_dump()) for run in config.runs().values()))


def theory_command(config: Config, size: str = "verdict") -> str:
    """The shell line that repeats the measurements, with what was changed on the command line."""
    usual = theory_config(size == "smoke")
    changed = changed_flags(usual.model_dump(), config.model_dump())
    return shlex.join(["ffalora", "study", "theory", "--size", size, *changed])
