"""``ffalora study theory``: the measurements, and their page."""

from __future__ import annotations

from pathlib import Path

from ...atomic import write_atomically
from ...config import Config, ConfigError, to_yaml
from ...environment import describe_environment
from ...models import choose_device
from ...report.page import Finding, Page, describe_run, render
from ...report.plots import save_plots
from ...report.tables import flatten
from ..page import FILE
from .study import CONFIG, TheoryResult, measure

_ASKED = (
    "What do averaging, noise and curvature do to LoRA's two trained factors, and what to FFA-LoRA's one?",
    "Source: Sun et al., ICLR 2024, and what follows from its formulas; docs/theory.md derives every quantity.",
)


def run_theory(
    config: Config, folder: Path, resume: bool = False, progress: bool = True, command: str = ""
) -> TheoryResult:
    """Measures what is not measured yet and writes ``study.html`` and ``plots/`` into ``folder``.

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
    result = measure(config, folder, progress)
    write_atomically(folder / CONFIG, to_yaml(config).encode())
    page = theory_page(result, config, command)
    save_plots(page.plots, folder / "plots")
    write_atomically(folder / FILE, render(page).encode())
    return result


def theory_page(result: TheoryResult, config: Config, command: str = "") -> Page:
    """Verdicts, tables and plots of the measurements, with how to repeat them."""
    described = [describe_run(run.model_dump()) for run in config.runs().values()]
    return Page(
        title="Study: Theory",
        asked=[*_ASKED, *dict.fromkeys(described)],
        findings=[Finding(sentence, "measured") for sentence in result.verdicts],
        tables=result.tables[:1],
        plots=result.plots,
        details=result.tables[1:],
        commands=[command] if command else [],
        configs={CONFIG: to_yaml(config)},
        environment=flatten(describe_environment(choose_device(config.device))),
    )
