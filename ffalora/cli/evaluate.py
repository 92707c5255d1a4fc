"""``ffalora evaluate``: the metrics of a finished adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..files.numbers import to_json
from .options import ConfigCommand
from .output import json_option
from .running import hide_loading_bars


@click.command("evaluate", cls=ConfigCommand, sections=("device", "model", "data"), short_help="Metrics of an adapter.")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("data", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--by", help="Column, such as a client's or site's name, for metrics of the rows of each of its values.")
@json_option
def command(folder: Path, data: Path | None, by: str | None, as_json: bool, overrides: dict[str, Any]) -> None:
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
    scores = evaluate(folder, overrides, by)
    intervals = scores.intervals()
    if as_json:
        more = {"samples": scores.samples, "rows": scores.rows, "intervals": intervals}
        click.echo(to_json(scores | more | ({"by_group": scores.by_group} if scores.by_group else {})))
        return
    width = max(map(len, scores))
    for name, value in scores.items():
        low_high = "  95% [{:.4f}, {:.4f}]".format(*intervals[name]) if name in intervals else ""
        click.echo(f"{name:<{width}}  {value:.4f}{low_high}")
    click.echo(f"{scores.samples} rows: {scores.rows}")
    if scores.by_group:
        names = list(next(iter(scores.by_group.values())))
        title = by or "client"
        first = max(map(len, (title, *scores.by_group)))
        click.echo("\n" + "  ".join([f"{title:<{first}}", *(f"{name:>{max(8, len(name))}}" for name in names)]))
        for group, found in scores.by_group.items():
            cells = (f"{found[name]:>{max(8, len(name))}{'' if name == 'rows' else '.4f'}}" for name in names)
            click.echo("  ".join([f"{group:<{first}}", *cells]))
