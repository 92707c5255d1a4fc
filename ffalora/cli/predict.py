"""``ffalora predict``: labels for texts, or for every row of a table; answers where the run is of a language model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ..files.numbers import to_json
from .options import ConfigCommand
from .running import hide_loading_bars


@click.command(
    "predict",
    cls=ConfigCommand,
    sections=("device", "model", "data.text", "data.encoding", "data.delimiter"),
    short_help="Labels for texts or tables.",
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("texts", nargs=-1)
@click.option("--pairs", is_flag=True, help="Take the texts two by two, for adapters of sentence pairs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: an object a text, or one of a table.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Of a table.  [NAME-predicted.SUFFIX]")
@click.option("--overwrite", is_flag=True, help="Replace that file where it exists.")
def command(
    folder: Path,
    texts: tuple[str, ...],
    pairs: bool,
    as_json: bool,
    output: Path | None,
    overwrite: bool,
    overrides: dict[str, Any],
) -> None:
    """Predict the label of each of TEXTS (of each line of the standard input if there are none), or of every row of a
    table; the adapter of a language model answers them.

    FOLDER is a run's folder or its `adapter`. A single TEXT that names a file (CSV, TSV, JSON, JSON lines, Parquet) is
    a table with the columns that the run was trained on; it is written again with predictions and probabilities.

    
    ffalora predict runs/feedback new.csv
    ffalora predict runs/demo "a wonderful film"
    """
    if len(texts) == 1 and _is_table(texts[0]):
        file = Path(texts[0])
        target = output or Path(f"{file.stem}-predicted{file.suffix}")
        if target.exists() and not overwrite:
            raise click.UsageError(f"{target} exists; --overwrite replaces it, --output writes another file")
        _predict_table(folder, file, target, overrides, as_json)
        return
    files = [text for text in texts if _names_file(text)]
    if files:
        is_there = Path(files[0]).exists()
        raise click.UsageError(
            (f"{files[0]!r} is no table, or not the only one" if is_there else f"there is no file {files[0]!r}")
            + "; give one table (CSV, TSV, JSON, JSON lines, Parquet), or label the lines of a file with "
            f"`ffalora predict {folder} < FILE`"
        )
    if output is not None:
        raise click.UsageError(f"--output {output} is for tables; give the name of one, or redirect what is printed")
    lines = list(texts) or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not lines:
        raise click.UsageError("give texts to label, or lines on the standard input")
    if not all(line.strip() for line in lines):
        raise click.UsageError("a text is empty, which has no label; leave it out")
    if pairs and len(lines) % 2:
        raise click.UsageError(f"--pairs takes texts two by two, got {len(lines)}")
    from ..runs.bundle import predict

    hide_loading_bars()
    asked = list(zip(lines[::2], lines[1::2], strict=True)) if pairs else lines
    for text, answer in zip(asked, predict(folder, asked, overrides), strict=True):
        if as_json:
            click.echo(to_json({"text": text, **answer}))
        elif "answer" in answer:
            click.echo(answer["answer"] if len(asked) == 1 else f"> {text}\n{answer['answer']}\n")
        elif "label" in answer:
            shown = "  |  ".join(text) if isinstance(text, tuple) else text
            click.echo(f"{answer['label']}\t{answer['probabilities'][answer['label']]:.3f}\t{shown}")
        else:
            click.echo(f"{answer['value']:.4f}\t{text}")


def _predict_table(folder: Path, file: Path, target: Path, overrides: dict[str, Any], as_json: bool) -> None:
    from ..runs.tables import predict_file

    hide_loading_bars()
    found = predict_file(folder, file, target, overrides)
    if as_json:
        said = {"written": str(target), "rows": found.rows, "skipped": found.skipped, "counts": found.counts}
        click.echo(to_json(said))
        return
    counts = ", ".join(f"{name} {count}" for name, count in found.counts.items())
    skipped = f"; {found.skipped} rows without a text have none" if found.skipped else ""
    click.echo(f"written {target}: {found.rows} predictions{f' ({counts})' if counts else ''}{skipped}")


def _is_table(text: str) -> bool:
    """Whether there is a file of this name, with the suffix of a table."""
    from ..data.files import SUFFIXES

    return _names_file(text) and Path(text).suffix.lower() in SUFFIXES and Path(text).is_file()


def _names_file(text: str) -> bool:
    """Whether there is a file or folder of this name, or the text looks like the name of a table."""
    from ..data.files import SUFFIXES

    if not text.strip():
        return False  # the name of the folder where one is
    try:
        return Path(text).exists() or (" " not in text and Path(text).suffix.lower() in SUFFIXES)
    except (OSError, ValueError):  # too long for a name, or with a null character in it
        return False
