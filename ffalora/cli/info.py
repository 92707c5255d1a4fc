"""``ffalora info``: what this machine has, and which backend answers."""

from __future__ import annotations

import json

import click

from .output import json_option


@click.command("info", short_help="Versions, device, backends, number formats.")
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
@json_option
def command(device: str, as_json: bool) -> None:
    """Show versions, device, threads, number formats, and for each backend whether it works here, or why not."""
    from ..models import choose_device
    from ..runs.environment import describe_environment

    found = describe_environment(choose_device(device))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        if isinstance(value, dict):
            click.echo(f"{name}")
            for inner, text in value.items():
                click.echo(f"  {inner:<14} {text}")
        else:
            click.echo(f"{name:<16} {value}")
