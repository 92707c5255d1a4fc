"""``ffalora watch``: a live page of a running job."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("watch", short_help="A live page of a running job, on this machine alone.")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of the page.  [a free one]")
@click.option("--json", "as_json", is_flag=True, help="Print how far the run is as one JSON object, and serve nothing.")
def command(folder: Path, port: int, as_json: bool) -> None:
    """Serve a page that follows the run in FOLDER while it goes on: rounds, metric, ε spent, clipped share, bytes, time
    left. Ctrl-C ends the page, not the run.

    The page is for browsers on this machine. It reads what the run writes down after each round, so that it shows no
    more of a run with secure noise than that run lets out.

    \b
    ffalora watch runs/feedback
    ffalora watch runs/feedback --json
    """
    from ..files.numbers import to_json
    from ..report.live import live_state

    if as_json:
        click.echo(to_json(live_state(folder)))
        return
    from ..report.watch import LOOPBACK, watch_server

    with watch_server(folder, port) as server:
        click.echo(
            f"watching {folder} at http://{LOOPBACK}:{server.server_port}/   (Ctrl-C ends the page, not the run)"
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("")
