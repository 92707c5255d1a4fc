"""``ffalora site``: one client of a real federation, as a service."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("site", short_help="A client of a real federation, kept running.")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.argument("supernode", nargs=-1, type=click.UNPROCESSED)
@click.option("--client", type=click.IntRange(min=0), required=True, help="Its id in the federation, from 0.")
@click.option("--data", type=click.Path(exists=True), help="Its own data: a file or a folder.")
@click.option(
    "--policy", type=click.Path(exists=True, dir_okay=False), help="What it allows, in YAML; the defaults without one."
)
@click.option("--ledger", help="Name or folder of its data's privacy ledger, instead of the data's own name.")
def command(
    folder: Path, supernode: tuple[str, ...], client: int, data: str | None, policy: str | None, ledger: str | None
) -> None:
    """Keep a client of a federation running in FOLDER, which holds its ledger: never share or delete it.

    What follows `--` are options of flower-supernode: `-- --superlink HOST:PORT --root-certificates ca.pem …`. One
    process holds model and data from round to round, the other is Flower's SuperNode; each is started again when it
    ends, and both end with this command. docs/flower.md has a whole federation.
    """
    from ..federated.flower.keeper import SiteTerms, keep_site

    folder.mkdir(parents=True, exist_ok=True)
    whole = [None if path is None else str(Path(path).resolve()) for path in (data, policy)]
    keep_site(SiteTerms(client, str(folder.resolve()), whole[0], whole[1], ledger), supernode)
