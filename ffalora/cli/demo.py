"""``ffalora demo``: FFA-LoRA beside LoRA on three clients, on the model and the data that come with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import click

from .options import ConfigCommand, seeds_option
from .running import run


@click.command("demo", cls=ConfigCommand, short_help="FFA-LoRA beside LoRA: three clients, real text, ε = 6.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Folder of the run [runs/demo].")
@click.option("--resume", is_flag=True, help="Continue the run in --output after its last completed round.")
@click.option("--progress/--no-progress", default=True, help="Show a bar with the time left.")
@seeds_option
def command(output: Path | None, resume: bool, progress: bool, seeds: int, overrides: dict[str, Any]) -> None:
    """Fine-tune a sentence encoder on movie reviews that three clients hold, under a privacy budget, by both methods.

    Prints a table, and writes report.html and an adapter for each method into the run's folder.
    """
    from ..federated.simulate import simulate

    with resources.as_file(resources.files("ffalora") / "configs" / "demo.yaml") as path:
        run("demo", path, overrides, output, resume, seeds, simulate, progress)
