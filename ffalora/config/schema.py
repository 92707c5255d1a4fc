"""The configuration as a JSON schema, by which editors complete keys and mark mistakes."""

from __future__ import annotations

from typing import Any

from .names import OTHER_NAMES
from .run import Config


def json_schema() -> dict[str, Any]:
    """The schema of a YAML file, with second names of keys, and without the defaults of whole sections."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "A run of ffalora"
    for section, names in OTHER_NAMES.items():
        of_section = _section(schema, section)["properties"]
        of_section |= {other: of_section[own] for other, own in names.items()}
    for field in schema["properties"].values():
        if "$ref" in field:
            field.pop("default", None)
    return schema


def _section(schema: dict[str, Any], name: str) -> dict[str, Any]:
    return schema["$defs"][schema["properties"][name]["$ref"].rpartition("/")[2]]
