"""``ffalora profile``: where the time and the memory of a job go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import ConfigCommand
from .output import json_option


@click.command("profile", cls=ConfigCommand, short_help="Where time and memory of a job go, with a trace.")
@click.argument("config", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/profile"),
    show_default=True,
    help="Folder of trace.json and profile.json.",
)
@click.option("--steps", type=click.IntRange(min=1), default=3, show_default=True, help="Logical steps to profile.")
@click.option("--warmup", type=click.IntRange(min=0), default=1, show_default=True, help="Steps before them.")
@json_option
def command(
    config: Path | None, output: Path, steps: int, warmup: int, as_json: bool, overrides: dict[str, Any]
) -> None:
    """Take a few logical steps of the job that CONFIG (a YAML file) describes, and show where time and memory go.

    Of several methods the first is profiled. Nothing is trained for keeps; trace.json opens in chrome://tracing or
    Perfetto.
    """
    from ..config import load_config
    from ..federated.profile import profile_run
    from ..files.numbers import to_json

    runs = load_config(config, overrides).runs()
    name, chosen = next(iter(runs.items()))
    found = profile_run(chosen, output, steps, warmup)
    if as_json:
        click.echo(to_json({"method": name, **found.as_dict()}))
        return
    if len(runs) > 1:
        click.echo(f"method {name} (the first of {', '.join(runs)})")
    click.echo(found.to_text())
