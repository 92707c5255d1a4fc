"""How methods are trained in a study, beside what they are trained on: the package's way, or the paper's.

A protocol is a YAML file of ``protocols/``: dotted keys over a base's, and the values among which every method's own
are chosen, at each scale. ``--protocol`` is the only switch between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Literal

import yaml
from pydantic import Field

from ..config import ConfigError, Section

Scale = Literal["laptop", "paper"]
#: Values to choose from, by dotted key.
Tried = dict[str, list[float]]
#: Stands for every method that ``tried`` does not name.
ANY = "any"


class ProtocolScale(Section):
    """A protocol at one scale."""

    set: dict[str, Any] = Field(default_factory=dict, description="dotted keys that are of this scale alone")
    tried: dict[str, Tried] = Field(description="by method, the first values to choose from; any: of the others")


class Protocol(Section):
    """A way to train that all methods of a study share."""

    says: str = Field(description="the protocol in a sentence")
    set: dict[str, Any] = Field(default_factory=dict, description="dotted configuration keys and values")
    scales: dict[Scale, ProtocolScale]

    def tried(self, scale: Scale, method: str) -> Tried:
        """The first values of a method, by dotted key."""
        tried = self.scales[scale].tried
        return tried.get(method, tried[ANY])


def shipped(folder: str) -> dict[str, str]:
    """The YAML texts that come with the package in one of this room's folders, by name."""
    entries = sorted((files(__package__) / folder).iterdir(), key=lambda entry: entry.name)
    return {entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8") for entry in entries}


def usual_protocol(scale: Scale) -> str:
    """The protocol of a scale where none is asked for."""
    return "paper" if scale == "paper" else "user"


def load_protocol(name: str) -> Protocol:
    """A protocol by name.

    Raises:
        ConfigError: there is none of this name, or its file does not fit.
    """
    texts = shipped("protocols")
    if name not in texts:
        raise ConfigError(f"--protocol {name!r}: choose one of {', '.join(texts)}")
    return Protocol.read(yaml.safe_load(texts[name]), f"protocol {name}: ")


def wider(values: Sequence[float], best: float) -> list[float]:
    """The values with one more beyond ``best`` where it is the largest or the smallest of several, at the distance (as
    a ratio) of its neighbour; as they are where it is not.
    """
    known = sorted(values)
    if len(known) < 2 or best not in (known[0], known[-1]):
        return known
    if best == known[-1]:
        return [*known, float(f"{best * best / known[-2]:.6g}")]
    return [float(f"{best * best / known[1]:.6g}"), *known]
