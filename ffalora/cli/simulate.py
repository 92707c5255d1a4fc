"""``ffalora simulate``: federated rounds, all clients on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import ConfigCommand
from .running import RunOptions, run, run_options


@click.command("simulate", cls=ConfigCommand, short_help="Federated rounds of every method in a configuration.")
@click.argument("config", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@run_options
def command(config: Path | None, options: RunOptions, overrides: dict[str, Any]) -> None:
    """Simulate federated rounds as CONFIG (a YAML file) says, changed by flags.

    Every key of the configuration is a flag: --optimizer.lr 0.5, --adapter.target_modules '[query, value]'. Values are
    YAML. --methods.NAME.optimizer.lr 0.5 changes one of several methods. The run's folder holds the resolved
    configuration, metrics of each round, the privacy statement, the adapter in PEFT's format and report.html.
    """
    from ..federated.simulate import simulate

    run("simulate", config, overrides, options, simulate)
