"""``--json``: what a verb found, as one JSON object instead of lines for people."""

from __future__ import annotations

from collections.abc import Callable

import click

json_option: Callable[[Callable], Callable] = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object."
)
