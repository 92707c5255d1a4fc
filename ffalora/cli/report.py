"""``ffalora report``: runs side by side."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report", short_help="Lay finished runs side by side in one page.")
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder of the page [the run, or runs/report]."
)
def command(folders: tuple[Path, ...], output: Path | None) -> None:
    """Write report.html (one self-contained page) and plots of the runs in FOLDERS, and print their table."""
    from ..report import read_runs, table_text, write_report

    runs = read_runs(folders)
    if output is None and len(folders) > 1:
        output = Path("runs") / "report"
    page = write_report(runs, output or folders[0])
    click.echo(table_text(runs))
    click.echo(f"\nreport {page}")
