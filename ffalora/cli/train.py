"""``ffalora train``: fine-tuning at one site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import ConfigCommand, seeds_option
from .running import run


@click.command("train", cls=ConfigCommand, short_help="Fine-tune at one site, private or not.")
@click.argument("config", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Folder of the run [runs/NAME].")
@click.option("--resume", is_flag=True, help="Continue the run in --output after its last completed round.")
@click.option("--progress/--no-progress", default=True, help="Show a bar with the time left.")
@seeds_option
def command(
    config: Path | None, output: Path | None, resume: bool, progress: bool, seeds: int, overrides: dict[str, Any]
) -> None:
    """Fine-tune one adapter on all the training data, as CONFIG (a YAML file) says, changed by flags.

    Takes federation.rounds × federation.local_steps logical steps, and evaluates and saves after each round. With
    --privacy.unit sample the run is private; without, it is plain fine-tuning.
    """
    from ..local import train

    run("train", config, overrides, output, resume, seeds, train, progress)
