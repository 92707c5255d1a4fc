"""The study of theory on docs/results.md and its own page, from config.yaml and results.csv in docs/results/theory."""

from __future__ import annotations

import shutil
from pathlib import Path

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

from ffalora.config import ConfigError
from ffalora.report.plots import save_plots
from ffalora.runs.folder import ENVIRONMENT
from ffalora.studies.page import changed_flags
from ffalora.studies.results import RESULTS
from ffalora.studies.theory import TheoryResult, read_theory, theory_command, theory_config
from ffalora.studies.theory.page import QUESTION, SOURCE, TITLE, settings_in_words, size_in_words
from ffalora.studies.theory.study import CONFIG, RESULT

NAME = "theory"


def collect_theory(top: Path, data: Path) -> list[str]:
    """Copies the tables of finished measurements of the verdict's size in a folder of ``top`` to ``data/theory``;
    returns one line for each folder of measurements that it found.

    Raises:
        ValueError: two folders hold such measurements.
    """
    said, taken = [], False
    for folder in sorted({path.parents[2] for path in top.glob(f"*/*/seed-*/{RESULT}")}):
        try:
            config, result = read_theory(folder)
        except ConfigError as error:
            said.append(f"left out: {error}")
            continue
        if changed := changed_flags(theory_config().model_dump(), config.model_dump()):
            said.append(f"{folder}: left out, not of the verdict's size: {' '.join(changed)}")
            continue
        if taken:
            raise ValueError(f"--collect {top}: two folders hold study {NAME}; move one of them away")
        taken = True
        (data / NAME).mkdir(parents=True, exist_ok=True)
        for name in (CONFIG, RESULTS, ENVIRONMENT):
            shutil.copyfile(folder / name, data / NAME / name)
        said.append(f"{folder}: {len(result.rows)} runs")
    return said


def committed_theory(data: Path) -> TheoryResult | None:
    """What the committed tables say; None where there are none."""
    return read_theory(data / NAME)[1] if (data / NAME / RESULTS).exists() else None


def theory_section(data: Path) -> str:
    """The first answer, one picture, and where the rest is."""
    _, result = read_theory(data / NAME)
    parts = [
        f"## {TITLE}\n",
        answer_part(result.verdicts[0]),
        plots_part(result.plots[:1], f"{data.name}/{NAME}"),
        f"Details: [{NAME}]({data.name}/{NAME}.md).\n",
    ]
    return "\n".join(parts)


def theory_page(data: Path, remark: str) -> str:
    """Questions, answers, tables, plots and how to measure it again."""
    config, result = read_theory(data / NAME)
    parts = [
        f"# {TITLE}\n",
        answer_part(result.verdicts[0]),
        plots_part(result.plots, NAME),
        question_part(QUESTION, SOURCE),
        list_part(result.verdicts),
        *map(table_part, result.tables),
        *remark_part(remark),
        f"{size_in_words(result, config)} {device_words(data / NAME)}{' '.join(settings_in_words(config))}\n",
        command_part(theory_command(config)),
    ]
    return "\n".join(parts)


def draw_theory(data: Path) -> None:
    """Draws the plots beside the tables, where there are any."""
    if result := committed_theory(data):
        save_plots(result.plots, data / NAME, formats=("svg",))
