"""``ffalora demo``: FFA-LoRA beside LoRA on three clients, on the model and the data that come with the package."""

from __future__ import annotations

from importlib import resources
from typing import Any

import click

from .options import ConfigCommand
from .running import RunOptions, run, run_options


@click.command("demo", cls=ConfigCommand, short_help="FFA-LoRA beside LoRA: three clients, real text, a budget.")
@click.option("--lm", is_flag=True, help="Fine-tune a language model on news instead, and show its answers.")
@run_options
def command(lm: bool, options: RunOptions, overrides: dict[str, Any]) -> None:
    """Fine-tune a sentence encoder on movie reviews that three clients hold, under a privacy budget, by three methods;
    with --lm, a small language model on the articles of three newspapers.

    Prints a table, and writes report.html and an adapter for each method into the run's folder. --seeds 3 repeats it.
    """
    from ..federated.simulate import simulate

    name = "demo-lm" if lm else "demo"
    with resources.as_file(resources.files("ffalora") / "configs" / f"{name}.yaml") as path:
        run("demo --lm" if lm else "demo", None if options.resume else path, overrides, options, simulate)
