"""The pages' templates, filled."""

from __future__ import annotations

from typing import Any

import jinja2


def fill(name: str, **values: Any) -> str:
    """The page that a template of this folder makes of ``values``; they are escaped unless they are Markup."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ffalora", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(name).render(**values)
