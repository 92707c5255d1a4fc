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
@click.argument("data", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(folder: Path, data: Path | None, as_json: bool, overrides: dict[str, Any]) -> None:
    """Evaluate the adapter in FOLDER (a run's folder or its `adapter`) on its own held-out rows, or on other DATA.

    Of a file, every row is scored. Of a folder (or of a hub name, --data.name) it is the split called test (or the one
    that --data.evaluate_on or --data.splits '{test: NAME}' names). Classes are matched by name.

    
    ffalora evaluate runs/feedback new.csv
    """
    from ..runs.bundle import evaluate

    if data is not None:
        if "data.name" in overrides:
            raise click.UsageError(f"{data} and --data.name {overrides['data.name']} are both given; leave one out")
        overrides = overrides | {"data.name": str(data)}
    hide_loading_bars()
    scores = evaluate(folder, overrides)
    intervals = scores.intervals()
    if as_json:
        click.echo(json.dumps(scores | {"samples": scores.samples, "rows": scores.rows, "intervals": intervals}))
        return
    width = max(map(len, scores))
    for name, value in scores.items():
        low_high = "  95% [{:.4f}, {:.4f}]".format(*intervals[name]) if name in intervals else ""
        click.echo(f"{name:<{width}}  {value:.4f}{low_high}")
    click.echo(f"{scores.samples} rows: {scores.rows}")
