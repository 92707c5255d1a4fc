"""``ffalora predict``: labels for texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from .options import ConfigCommand
from .running import hide_loading_bars


@click.command("predict", cls=ConfigCommand, sections=("device", "model"), short_help="Labels for texts.")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("texts", nargs=-1)
@click.option("--pairs", is_flag=True, help="Take the texts two by two, for adapters of sentence pairs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def command(folder: Path, texts: tuple[str, ...], pairs: bool, as_json: bool, overrides: dict[str, Any]) -> None:
    """Predict the label of each of TEXTS (of each line of the standard input if there are none).

    FOLDER is a run's folder or its `adapter`. A text is never taken for the name of a file: give a file's lines as
    `ffalora predict FOLDER < FILE`.
    """
    files = [text for text in texts if _names_file(text)]
    if files:
        raise click.UsageError(
            f"{files[0]!r} is a file, not a text; label its lines with `ffalora predict {folder} < {files[0]}`, or "
            f"score a table that has labels with `ffalora evaluate {folder} --data.name {files[0]}`"
        )
    lines = list(texts) or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not lines:
        raise click.UsageError("give texts to label, or lines on the standard input")
    if pairs and len(lines) % 2:
        raise click.UsageError(f"--pairs takes texts two by two, got {len(lines)}")
    from ..runs.bundle import predict

    hide_loading_bars()
    asked = list(zip(lines[::2], lines[1::2], strict=True)) if pairs else lines
    for text, answer in zip(asked, predict(folder, asked, overrides), strict=True):
        if as_json:
            click.echo(json.dumps({"text": text, **answer}, ensure_ascii=False))
        elif "label" in answer:
            shown = "  |  ".join(text) if isinstance(text, tuple) else text
            click.echo(f"{answer['label']}\t{answer['probabilities'][answer['label']]:.3f}\t{shown}")
        else:
            click.echo(f"{answer['value']:.4f}\t{text}")


def _names_file(text: str) -> bool:
    """Whether there is a file of this name, or the text looks like the name of a table."""
    from ..data.files import SUFFIXES

    try:
        return Path(text).is_file() or (" " not in text and Path(text).suffix.lower() in SUFFIXES)
    except (OSError, ValueError):  # too long for a name, or with a null character in it
        return False
