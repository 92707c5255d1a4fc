"""``ffalora study``: a grid of runs that answers a question."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from ..files.numbers import to_json
from .errors import Interrupted
from .options import ConfigCommand, given_words
from .output import NumberRange
from .running import RunOptions, hide_loading_bars, run_options

#: Stands for all studies of the paper's claims, in order of importance.
TIER_A = "tier-a"


@click.command("study", cls=ConfigCommand, short_help="A grid of runs that answers a question, with a verdict.")
@click.argument("name")
@click.option("--scale", type=click.Choice(["laptop", "paper"]), default="laptop", help="Model and data.  [laptop]")
@click.option(
    "--size",
    type=click.Choice(["smoke", "verdict"]),
    default="smoke",
    help="smoke: minutes, to see it work; verdict: all cells with all seeds, hours.  [smoke]",
)
@click.option(
    "--protocol",
    help="How methods are trained: user (the package's defaults) or paper (the paper's way).  [paper at its scale]",
)
@click.option("--base", help="Another model or other data of this scale, such as paper-qnli.  [the study's own]")
@click.option(
    "--dry-run",
    "is_dry_run",
    is_flag=True,
    help="Take every cell of the study through two steps on small stand-ins, without network, and count what a "
    "full-size run trains and sends. Nothing is kept. NAME may be all.",
)
@click.option("--first-seed", type=click.IntRange(min=0), default=0, help="Of the verdict runs: fresh ones.  [0]")
@click.option("--budget", type=NumberRange(min=0), help="Hours after which no run is begun that would not fit.")
@run_options
def command(
    name: str,
    scale: Any,
    size: Any,
    protocol: str | None,
    base: str | None,
    is_dry_run: bool,
    first_seed: int,
    budget: float | None,
    options: RunOptions,
    overrides: dict[str, Any],
) -> None:
    """Run study NAME: privacy, heterogeneity, stability, alpha, cost (or tier-a: these five), methods, rank, init or
    theory.

    Learning rates are chosen for each method and condition on the validation split, and the number of seeds follows
    from the variance seen there; what will be compared is then registered, and every seed is run and judged on the test
    split. The folder holds every run, results.csv and study.html. Interrupt it at any time; --resume goes on.
    Configuration flags change what all cells share, such as --federation.rounds 5; --seeds says how many runs every
    cell has.
    """
    from ..config import ConfigError
    from ..studies.budget import Budget
    from ..studies.grid import load_grid, with_seeds
    from ..studies.requirements import check_requirements
    from ..studies.study import tier_names

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
        _dry_run(name, scale, protocol, base, overrides)
        return
    names, allowed = (
        tier_names("A") if name == TIER_A else [name],
        Budget() if budget is None else Budget(3600 * budget),
    )
    grids = [load_grid(each, scale, size, overrides, base, protocol) for each in names]
    for number, grid in enumerate(grids):
        if first_seed and seeds is None and grid.is_powered:
            raise ConfigError(
                f"--first-seed {first_seed}: the number of seeds follows from the variance for seeds from 0 on alone; "
                "say with --seeds how many there are to be from there"
            )
        counted = len(grid.seeds) if seeds is None else seeds
        grids[number] = grid if seeds is None and not first_seed else with_seeds(grid, counted, first_seed)
        if scale == "paper":
            check_requirements(grids[number])
    for grid in grids:
        place = "-".join(["study", grid.name, base or scale, grid.protocol, size])
        top = options.output or Path("runs")
        whole = len(grids) > 1 or options.output is None
        _run(grid, top / place if whole else top, top / "cells" if whole else None, allowed, options)


def _run(grid: Any, folder: Path, cells: Path | None, budget: Any, options: RunOptions) -> None:
    """One study: run, and its page written and told."""
    from ..report import plain_text
    from ..studies.page import write_page
    from ..studies.runner import run_study
    from ..studies.tables import metric_table

    tell = (lambda text: None) if options.as_json else click.echo
    try:
        result = run_study(grid, folder, options.resume, options.progress, cells, budget, tell)
    except KeyboardInterrupt:
        again = shlex.join(["ffalora", "study", *given_words(), *([] if options.resume else ["--resume"])])
        raise Interrupted(f"interrupted; every finished run is in {folder}. To go on:\n  {again}") from None
    if options.as_json:
        _as_json([verdict.to_text() for verdict in result.verdicts], write_page(result), result.stopped)
        return
    click.echo(plain_text(metric_table(result)) + "\n")
    for verdict in result.verdicts:
        click.echo(verdict.to_text())
    if result.stopped:
        click.echo(f"{result.stopped}; --resume goes on")
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


def _as_json(verdicts: list[str], page: Path, stopped: str = "") -> None:
    """``stopped`` says why there is more to run; empty where there is not."""
    said = {"verdicts": verdicts, "page": str(page), "results": str(page.with_name("results.csv")), "stopped": stopped}
    click.echo(to_json(said))


def _dry_run(name: str, scale: Any, protocol: str | None, base: str | None, overrides: dict[str, Any]) -> None:
    """Every cell of a study, whatever the size asked for, or those that try a whole scale."""
    from ..config import ConfigError
    from ..studies.dry_run import dry_run, rehearsals
    from ..studies.grid import load_grid

    if name == "all" and (base or overrides):
        raise ConfigError("all with --dry-run tries every study as it is; name one study to change its base or a key")
    one = [] if name == "all" else [load_grid(name, scale, "verdict", overrides, base, protocol)]
    grids = one or rehearsals(scale, protocol)
    cells = 0
    for grid in grids:
        checked = dry_run(grid)
        cells += checked.cells
        click.echo(checked.to_text())
    click.echo(f"{cells} cells of scale {scale} ran; no result of theirs means anything")
