"""``ffalora report``: runs side by side."""

from __future__ import annotations

from pathlib import Path

import click

from .output import json_option
from .running import show


@click.command("report", short_help="Lay finished runs side by side in one page.")
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder of the page [the run, or runs/report]."
)
@json_option
def command(folders: tuple[Path, ...], output: Path | None, as_json: bool) -> None:
    """Write report.html (one self-contained page) and plots of the runs in FOLDERS, and print their table and whether
    each run was worth it.
    """
    show(folders, output or (folders[0] if len(folders) == 1 else Path("runs") / "report"), as_json)
