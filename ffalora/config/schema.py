"""The configuration as a JSON schema, by which editors complete keys and mark mistakes."""

from __future__ import annotations

from typing import Any

from .names import OTHER_NAMES
from .run import Config, fields
from .section import ONE_IS_A_LIST


def json_schema() -> dict[str, Any]:
    """The schema of a YAML file, with second names of keys, nested or dotted, and without the defaults of sections."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "A run of ffalora"
    for key, field in fields().items():
        section, _, name = key.rpartition(".")
        if ONE_IS_A_LIST in field.metadata:
            _let_one_be_a_list(_keys(schema, section)[name])
    for section, names in OTHER_NAMES.items():
        of_section = _keys(schema, section)
        of_section |= {other: of_section[own] for other, own in names.items()}
    for section, value in schema["properties"].items():
        if "$ref" in value:
            value.pop("default", None)
            dotted = {rf"^{section}\.{name}$": of_key for name, of_key in _keys(schema, section).items()}
            schema.setdefault("patternProperties", {}).update(dotted)
    return schema


def _keys(schema: dict[str, Any], section: str) -> dict[str, Any]:
    """The schemas of a section's keys; of those outside sections for ``""``."""
    if not section:
        return schema["properties"]
    return schema["$defs"][schema["properties"][section]["$ref"].rpartition("/")[2]]["properties"]


def _let_one_be_a_list(of_key: dict[str, Any]) -> None:
    """A list may be written as the one thing that it holds."""
    if "anyOf" not in of_key:
        of_key["anyOf"] = [{"type": of_key.pop("type"), "items": of_key.pop("items")}]
    of_key["anyOf"] += [kind["items"] for kind in of_key["anyOf"] if "items" in kind]
