"""What verbs share of their words: ``--json``, one object instead of lines for people, ranges of numbers, and what was
given at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

json_option: Callable[[Callable], Callable] = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object."
)


class NumberRange(click.FloatRange):
    """A range that NaN is not in, which compares with nothing."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


def given_names() -> set[str]:
    """Names of the parameters of the command that runs which stand on the command line."""
    context = click.get_current_context()
    return {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
