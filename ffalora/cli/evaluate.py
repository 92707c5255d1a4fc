"""``ffalora evaluate``: the metrics of a finished adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .options import ConfigCommand
from .running import hide_loading_bars


@click.command("evaluate", cls=ConfigCommand, sections=("device", "model", "data"), short_help="Metrics of an adapter.")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(folder: Path, as_json: bool, overrides: dict[str, Any]) -> None:
    """Evaluate the adapter in FOLDER (a run's folder or its `adapter`) on its own data or on another's.

    --data.name FILE --data.evaluate_on test evaluates on other data with the same labels.
    """
    from ..runs.bundle import evaluate

    hide_loading_bars()
    metrics = evaluate(folder, overrides)
    if as_json:
        click.echo(json.dumps(metrics))
        return
    width = max(map(len, metrics))
    for name, value in metrics.items():
        click.echo(f"{name:<{width}}  {value:.4f}")
