"""``ffalora demo``: FFA-LoRA beside LoRA on three clients, on the model and the data that come with the package."""

from __future__ import annotations

from importlib import resources
from typing import Any

import click

from .options import ConfigCommand
from .running import RunOptions, run, run_options


@click.command("demo", cls=ConfigCommand, short_help="FFA-LoRA beside LoRA: three clients, real text, ε = 6.")
@run_options
def command(options: RunOptions, overrides: dict[str, Any]) -> None:
    """Fine-tune a sentence encoder on movie reviews that three clients hold, under a privacy budget, by both methods.

    Prints a table, and writes report.html and an adapter for each method into the run's folder. --seeds 3 repeats it.
    """
    from ..federated.simulate import simulate

    with resources.as_file(resources.files("ffalora") / "configs" / "demo.yaml") as path:
        run("demo", None if options.resume else path, overrides, options, simulate)
