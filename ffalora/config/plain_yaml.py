"""YAML as configurations are written in it: plain values, below keys that are names."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml


def read_yaml(text: str) -> Any:
    """The value that a text stands for; every key is the text that it is (``no``, ``01``), never another value.

    No tags that run code, and no aliases, by which a few lines can stand for gigabytes.

    Raises:
        yaml.YAMLError: no YAML, an alias, or a key that is given twice, whose first value would be lost.
    """
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases (*{self.peek_event().anchor}) are not read; write the value again")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        found: dict[Hashable, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"a key in line {line} is no name")
            if key.value in found:
                raise yaml.YAMLError(f"{key.value} is given again in line {line}; write it once")
            found[key.value] = self.construct_object(value, deep=deep)
        return found
