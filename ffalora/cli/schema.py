"""``ffalora schema``: the configuration for editors."""

from __future__ import annotations

import json

import click


@click.command("schema", short_help="A JSON schema of the configuration, for editors.")
def command() -> None:
    """Print the JSON schema of a configuration, by which editors complete keys, show what they mean and mark mistakes.

    \b
    ffalora schema > ffalora.schema.json
    # then, as the first line of a YAML file:
    # yaml-language-server: $schema=ffalora.schema.json
    """
    from ..config.schema import json_schema

    click.echo(json.dumps(json_schema(), indent=1, ensure_ascii=False))
