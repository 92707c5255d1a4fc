"""``ffalora study``: a grid of runs that answers a question."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from ..files.numbers import to_json
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
@click.option("--base", help="Another model or other data of this scale, such as paper-qnli.  [the study's own]")
@click.option(
    "--dry-run",
    "is_dry_run",
    is_flag=True,
    help="Take every cell of the study through two steps on small stand-ins, without network, and count what a "
    "full-size run trains and sends. Nothing is kept. NAME may be all.",
)
@run_options
def command(
    name: str,
    scale: Any,
    size: Any,
    base: str | None,
    is_dry_run: bool,
    options: RunOptions,
    overrides: dict[str, Any],
) -> None:
    """Run study NAME: heterogeneity, privacy, alpha, sensitivity, rank, init, cost, methods or theory.

    Learning rates are chosen for each method and condition on the validation split; every seed is then run and judged
    on the test split. The folder holds every run, results.csv and study.html. Interrupt it at any time; --resume goes
    on. Configuration flags change what all cells share, such as --federation.rounds 5; --seeds
    says how many runs every cell has.
    """
    from ..config import ConfigError
    from ..report import plain_text
    from ..studies.grid import load_grid, with_seeds
    from ..studies.page import study_command, write_page
    from ..studies.requirements import check_requirements
    from ..studies.runner import run_study
    from ..studies.tables import metric_table

    if "seed" in overrides:
        raise ConfigError("--seed: a study runs the seeds 0, 1, 2, …; say how many with --seeds")
    seeds = overrides.pop("seeds", None)
    hide_loading_bars()
    if name == "theory":
        if scale != "laptop" or base or is_dry_run:
            raise ConfigError("study theory is for the laptop scale alone: leave --scale, --base and --dry-run out")
        _theory(size, options, overrides | ({} if seeds is None else {"seeds": seeds}))
        return
    if is_dry_run:
        _dry_run(name, scale, base, overrides)
        return
    grid = load_grid(name, scale, size, overrides, base)
    grid = grid if seeds is None else with_seeds(grid, seeds)
    if scale == "paper":
        check_requirements(grid)
    folder = options.output or Path("runs") / "-".join(["study", name, base or scale, size])
    try:
        result = run_study(grid, folder, options.resume, options.progress)
    except KeyboardInterrupt:
        again = f"{study_command(grid)} --resume --output {shlex.quote(str(folder))}"
        raise Interrupted(f"interrupted; every finished run is in {folder}. To go on:\n  {again}") from None
    if options.as_json:
        _as_json([verdict.to_text() for verdict in result.verdicts], write_page(result))
        return
    click.echo(plain_text(metric_table(result)) + "\n")
    for verdict in result.verdicts:
        click.echo(verdict.to_text())
    click.echo(f"\npage {write_page(result)}")


def _theory(size: str, options: RunOptions, overrides: dict[str, Any]) -> None:
    from ..studies.page import FILE
    from ..studies.theory import run_theory, theory_command, theory_config

    folder = options.output or Path("runs") / f"study-theory-{size}"
    config = theory_config(size == "smoke", overrides)
    command = theory_command(config, size)
    try:
        result = run_theory(config, folder, options.resume, options.progress, command)
    except KeyboardInterrupt:
        again = f"{command} --resume --output {shlex.quote(str(folder))}"
        raise Interrupted(f"interrupted; every finished method is in {folder}. To go on:\n  {again}") from None
    if options.as_json:
        _as_json(list(result.verdicts), folder / FILE)
        return
    for sentence in result.verdicts:
        click.echo(sentence)
    click.echo(f"\npage {folder / FILE}")


def _as_json(verdicts: list[str], page: Path) -> None:
    click.echo(to_json({"verdicts": verdicts, "page": str(page), "results": str(page.with_name("results.csv"))}))


def _dry_run(name: str, scale: Any, base: str | None, overrides: dict[str, Any]) -> None:
    """Every cell of a study, whatever the size asked for, or those that try a whole scale."""
    from ..config import ConfigError
    from ..studies.dry_run import dry_run, rehearsals
    from ..studies.grid import load_grid

    if name == "all" and (base or overrides):
        raise ConfigError("all with --dry-run tries every study as it is; name one study to change its base or a key")
    grids = rehearsals(scale) if name == "all" else [load_grid(name, scale, "verdict", overrides, base)]
    cells = 0
    for grid in grids:
        checked = dry_run(grid)
        cells += checked.cells
        click.echo(checked.to_text())
    click.echo(f"{cells} cells of scale {scale} ran; no result of theirs means anything")
