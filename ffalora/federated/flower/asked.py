"""What a Flower run asks of a client: its configuration, read as the site itself reads it, and the task of a message.

What goes out in the open and what is masked follows from the configuration that :func:`~ffalora.config.from_mapping`
gives, however its keys are spelt: nested, dotted, or under their other names.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ...config import Config, from_mapping
from ...config.plain_yaml import read_yaml


@lru_cache(maxsize=4)
def config_of(text: str) -> Config:
    """A run's configuration from its YAML; read once, as a process answers one message and asks several times.

    Raises:
        ConfigError: it cannot be used.
    """
    return from_mapping(read_yaml(text))


def brings_noise(run: Mapping[str, Any]) -> bool:
    """Whether clients bring the noise of the run, in shares that are whole numbers; ``run`` is Flower's run_config."""
    return config_of(str(run["ffalora"])).privacy.noise_at == "clients"


def is_masked(run: Mapping[str, Any]) -> bool:
    """Whether the server is to learn a sum only."""
    return bool(run["secagg"]) or brings_noise(run)


def task_of(run: Mapping[str, Any], given: Mapping[str, Any], masked: bool) -> dict[str, Any]:
    """What a site is asked for: ``round`` and ``terms`` of a message, ``ffalora`` (the run's configuration), ``masked``
    (whether what it answers leaves masked), and ``limit`` where Flower's own masks quantise within ± that; shares of
    the noise are whole numbers, and are not quantised.

    Of what the server gives nothing else passes: it cannot say that a task is masked.
    """
    task = {name: given[name] for name in ("round", "terms")} | {"ffalora": str(run["ffalora"]), "masked": masked}
    return task | ({} if brings_noise(run) or not masked else {"limit": float(run["secagg-range"])})
