"""``ffalora flower``: a real federation of processes, on this machine or prepared for several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import ConfigCommand
from .output import NumberRange, json_option


@click.command("flower", cls=ConfigCommand, short_help="A real federation: server and clients as separate processes.")
@click.argument("config", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default="runs/flower",
    show_default=True,
    help="The server's folder.",
)
@click.option("--secagg", is_flag=True, help="Aggregate securely (SecAgg+): the server sees the average only.")
@click.option(
    "--secagg-range",
    type=NumberRange(min=0, min_open=True),
    default=4.0,
    show_default=True,
    help="Quantise numbers within ± this.",
)
@click.option("--shared-streams", is_flag=True, help="Let the sites here allow seeded noise: for comparisons only.")
@click.option("--timeout", type=float, default=600.0, show_default=True, help="Seconds that a round waits for answers.")
@click.option("--resume", is_flag=True, help="Continue what OUTPUT holds, after its last round.")
@click.option("--ray", is_flag=True, help="Clients in Flower's simulation engine (Ray) instead of one site each.")
@click.option("--app-only", is_flag=True, help="Write the app folder for `flwr run` and start nothing.")
@json_option
def command(
    config: Path | None,
    output: Path,
    secagg: bool,
    secagg_range: float,
    shared_streams: bool,
    timeout: float,
    resume: bool,
    ray: bool,
    app_only: bool,
    as_json: bool,
    overrides: dict[str, Any],
) -> None:
    """Run the federation of CONFIG with Flower: a SuperLink and one SuperNode a client, as processes on loopback.

    The same configuration and methods as `ffalora simulate`; each client draws its own noise and keeps its own ledger
    under OUTPUT/clients/ID. From here to several machines, with TLS and authentication: docs/flower.md.
    """
    from ..config import load_config
    from ..federated.checks import check_single, find_strategy
    from ..federated.flower.loopback import demonstration_policy, run_on_loopback, write_app
    from ..federated.flower.output import POLICY
    from ..federated.flower.policy import save_policy
    from ..federated.flower.rounds import check_remote, check_secure_aggregation
    from ..files.numbers import to_json

    values = load_config(config, overrides).with_noise("seeded" if shared_streams else "secure")
    check_single(values)
    check_remote(values)
    if secagg or values.privacy.noise_at == "clients":
        check_secure_aggregation(find_strategy(values.federation.strategy), values)
    limit = secagg_range if secagg else None
    if app_only:
        write_app(output / "app", values, output, limit, timeout, resume, ray)
        if ray:
            save_policy(demonstration_policy(values, shared_streams), output / POLICY)
        click.echo(to_json({"app": str(output / "app")}) if as_json else f"app {output / 'app'}")
        return
    run_on_loopback(values, output, limit, shared_streams, timeout, resume=resume, engine=ray)
    click.echo((output / "summary.json").read_text(encoding="utf-8"))
