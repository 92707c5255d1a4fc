"""``ffalora study``: a grid of runs that answers a question."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from .errors import Interrupted
from .options import ConfigCommand
from .running import RunOptions, hide_loading_bars, run_options


@click.command("study", cls=ConfigCommand, short_help="A grid of runs that answers a question, with a verdict.")
@click.argument("name")
@click.option("--scale", type=click.Choice(["laptop", "paper"]), default="laptop", help="Model and data.  [laptop]")
@click.option(
    "--size",
    type=click.Choice(["smoke", "verdict"]),
    default="smoke",
    help="smoke: minutes, to see it work; verdict: all cells with all seeds, hours.  [smoke]",
)
@run_options
def command(name: str, scale: Any, size: Any, options: RunOptions, overrides: dict[str, Any]) -> None:
    """Run study NAME: heterogeneity, privacy, alpha, sensitivity, rank, init, cost or methods.

    Learning rates are chosen for each method and condition on the validation split; every seed is then run and judged
    on the test split. The folder holds every run, results.csv and study.html. Interrupt it at any time; --resume goes
    on. Configuration flags change what all cells share, such as --federation.rounds 5; --seeds
    says how many runs every cell has.
    """
    from ..config import ConfigError
    from ..report import plain_text
    from ..studies.grid import load_grid, with_seeds
    from ..studies.page import study_command, write_page
    from ..studies.runner import run_study
    from ..studies.tables import metric_table

    if "seed" in overrides:
        raise ConfigError("--seed: a study runs the seeds 0, 1, 2, …; say how many with --seeds")
    seeds = overrides.pop("seeds", None)
    grid = load_grid(name, scale, size, overrides)
    grid = grid if seeds is None else with_seeds(grid, seeds)
    folder = options.output or Path("runs") / f"study-{name}-{scale}-{size}"
    hide_loading_bars()
    try:
        result = run_study(grid, folder, options.resume, options.progress)
    except KeyboardInterrupt:
        again = f"{study_command(grid)} --resume --output {shlex.quote(str(folder))}"
        raise Interrupted(f"interrupted; every finished run is in {folder}. To go on:\n  {again}") from None
    click.echo(plain_text(metric_table(result)) + "\n")
    for verdict in result.verdicts:
        click.echo(verdict.to_text())
    click.echo(f"\npage {write_page(result)}")
