"""``ffalora train``: fine-tuning at one site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import ConfigCommand
from .running import RunOptions, run, run_options


@click.command("train", cls=ConfigCommand, short_help="Fine-tune at one site, private or not.")
@click.argument("config", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@run_options
def command(config: Path | None, options: RunOptions, overrides: dict[str, Any]) -> None:
    """Fine-tune one adapter on all the training data, as CONFIG (a YAML file) says, changed by flags.

    Takes federation.rounds × federation.local_steps logical steps, and evaluates and saves after each round. With
    --privacy.unit sample the run is private; without, it is plain fine-tuning.
    """
    from ..federated.one_site import alone, train

    run("train", config, overrides, options, train, adapt=alone)
