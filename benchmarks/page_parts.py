"""The pieces that docs/results.md and the pages behind it are made of, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ffalora.report.plots import Plot
from ffalora.report.tables import Table
from ffalora.runs.folder import ENVIRONMENT
from ffalora.studies.folder import values_in_words


def answer_part(answer: str) -> str:
    """What was found, before anything else."""
    return f"**{answer}**\n"


def question_part(question: str, source: str) -> str:
    """What is asked, and who says so."""
    return f"{question} ({source.strip().rstrip('.')}.)\n"


def list_part(sentences: Sequence[str]) -> str:
    """One line a sentence."""
    return "\n".join(f"* {sentence}" for sentence in sentences) + "\n"


def table_part(table: Table) -> str:
    """The table, and its caption below it."""
    lines = [table.head, ("---",) * len(table.head), *table.rows]
    rows = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"{rows}\n\n{table.caption}\n"


def plots_part(plots: Sequence[Plot], folder: str) -> str:
    """Links to the plots' files in ``folder``, as seen from the page."""
    return "\n".join(f"![{plot.title}]({folder}/{plot.name}.svg)" for plot in plots) + "\n"


def remark_part(remark: str) -> list[str]:
    """What people have to say; nothing where they are silent."""
    return [f"**What agrees, what does not, and why we think so.** {remark}\n"] if remark else []


def device_words(folder: Path) -> str:
    """Where the tables of ``folder`` were measured, all that occur; empty where it does not say."""
    path = folder / ENVIRONMENT
    if not path.exists():
        return ""
    known = json.loads(path.read_text(encoding="utf-8"))
    device, threads = (values_in_words(known.get(name, "unknown")) for name in ("device", "threads"))
    held = f", frozen base in {values_in_words(known['base_dtype'])}" if "base_dtype" in known else ""
    return f"Device {device}, {threads} thread{'s' * (threads != '1')}{held}. "


def command_part(command: str) -> str:
    """The shell line that measures it again."""
    return f"```\n{command}\n```\n"
