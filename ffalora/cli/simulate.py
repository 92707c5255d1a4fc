"""``ffalora simulate``: federated rounds, all clients on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import ConfigCommand, seeds_option
from .running import run


@click.command("simulate", cls=ConfigCommand, short_help="Federated rounds of every method in a configuration.")
@click.argument("config", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Folder of the run [runs/NAME].")
@click.option("--resume", is_flag=True, help="Continue the run in --output after its last completed round.")
@click.option("--progress/--no-progress", default=True, help="Show a bar with the time left.")
@seeds_option
def command(
    config: Path | None, output: Path | None, resume: bool, progress: bool, seeds: int, overrides: dict[str, Any]
) -> None:
    """Simulate federated rounds as CONFIG (a YAML file) says, changed by flags.

    Every key of the configuration is a flag: --optimizer.lr 0.5, --adapter.target_modules '[query, value]'. Values are
    YAML. --methods.NAME.optimizer.lr 0.5 changes one of several methods. The run's folder holds the resolved
    configuration, metrics of each round, the privacy statement, the adapter in PEFT's format and report.html.
    """
    from ..federated.simulate import simulate

    run("simulate", config, overrides, output, resume, seeds, simulate, progress)
