"""What verbs share of their words: ``--json``, one object instead of lines for people, and what was given at all."""

from __future__ import annotations

from collections.abc import Callable

import click
from click.core import ParameterSource

json_option: Callable[[Callable], Callable] = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object."
)


def given_names() -> set[str]:
    """Names of the parameters of the command that runs which stand on the command line."""
    context = click.get_current_context()
    return {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
