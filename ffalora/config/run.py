"""The one configuration of a run: YAML file, command-line flags and Python API are three ways to write it.

Every key has a type, a default and a description; ``load_config`` merges a YAML file with dotted overrides and answers
a mistake with one sentence that names the key, its value and the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from .adapter import RunAdapterConfig
from .messages import ConfigError
from .model import ModelConfig
from .plain_yaml import read_yaml
from .privacy import PrivacyConfig
from .section import ONE_IS_A_LIST, SEEDS, Section, keys_of
from .sections import ClientsConfig, DataConfig, FederationConfig, OptimizerConfig
from .values import merge

#: What reading a file may raise, and what the YAML reader lets through for values that only look like dates or numbers.
_UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, yaml.YAMLError)


class Config(Section):
    """A whole run."""

    seed: int = Field(
        0,
        ge=0,
        lt=SEEDS,
        description="seed of partition, sampling and seeded noise; adapter.seed is that of the factors",
    )
    seeds: int = Field(
        1, ge=1, description="repeat every method with this many seeds, counted upwards from seed and adapter.seed"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, …")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    adapter: RunAdapterConfig = RunAdapterConfig()
    clients: ClientsConfig = ClientsConfig()
    federation: FederationConfig = FederationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    report_to: Annotated[list[Literal["tensorboard", "wandb", "mlflow", "trackio"]], ONE_IS_A_LIST] = Field(
        default_factory=list,
        description="also write each round for these tools, on this machine: tensorboard, wandb, mlflow, trackio",
    )
    baselines: bool = Field(
        True,
        description="also compute what the result has to beat: the largest class or best constant, the class texts, "
        "and, in simulations, class means and a linear probe with the same privacy",
    )
    methods: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="several runs side by side: a name, and the dotted keys in which it differs"
    )

    @property
    def least_shares(self) -> int:
        """How many clients must stay to the end of a round where they bring the noise; 0 if their number is unknown."""
        count = self.clients.count
        return max(0, self.federation.cohort(count) - self.privacy.dropouts) if count else 0

    @model_validator(mode="after")
    def _methods_can_be_folders(self) -> Config:
        for name, changes in self.methods.items():
            if not re.fullmatch(r"\w[\w.+-]*", name):
                raise ValueError(f"methods: {name!r} names a folder; use letters, digits, '-', '_', '+' and '.' only")
            if name.startswith("seed-"):
                raise ValueError(f"methods: {name!r} is named as folders of seeds are; give another name")
            if "seeds" in changes:
                raise ValueError(f"methods.{name}.seeds: all methods are repeated alike; set seeds for all of them")
        return self

    @model_validator(mode="after")
    def _views_differ(self) -> Config:
        if self.data.views > 1 and self.data.augment == "none" and not self.adapter.dropout:
            raise ValueError(
                f"data.views={self.data.views} would all be alike: nothing is augmented and nothing drops out; set "
                "data.augment or adapter.dropout, or data.views to 1"
            )
        return self

    @model_validator(mode="after")
    def _users_have_a_column(self) -> Config:
        if self.privacy.unit == "user" and self.data.user is None:
            raise ValueError(
                "privacy.unit='user' needs data.user: the column that says whose each row is; name it, or set "
                "privacy.unit to sample"
            )
        if self.privacy.unit == "user" and self.clients.partition in ("labels", "dirichlet"):
            raise ValueError(
                f"clients.partition={self.clients.partition!r} deals single rows, so that a user's would be at several "
                "clients; with privacy.unit='user' set it to iid, quantity or column"
            )
        return self

    def with_noise(self, usual: Literal["seeded", "secure"]) -> Config:
        """The configuration with ``privacy.noise=auto`` decided as ``usual``; as it is where it was decided."""
        if self.privacy.noise != "auto":
            return self
        return self.model_copy(update={"privacy": self.privacy.model_copy(update={"noise": usual})})

    def runs(self) -> dict[str, Config]:
        """The configurations of all methods by name; without ``methods`` the one run, named after its strategy."""
        if not self.methods:
            return {self.federation.strategy: self}
        base = self.model_dump(exclude={"methods"})
        return {
            name: from_mapping(merge(base, changes), where=f"methods.{name}") for name, changes in self.methods.items()
        }


def load_config(path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a YAML file, changed by dotted overrides such as ``{"optimizer.lr": 0.5}``.

    Raises:
        ConfigError: unreadable file, unknown key (near matches are listed), or a value of the wrong kind.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = read_yaml(Path(path).read_text(encoding="utf-8"))
        except _UNREADABLE as error:
            if Path(path).suffix.lower() not in (".yaml", ".yml", ".json"):
                raise ConfigError(f"{path} is no configuration; `ffalora init {path}` writes one for a table") from None
            raise ConfigError(f"cannot read {path}: {str(error)[:1000] or type(error).__name__}") from None
        if not isinstance(loaded or {}, dict):
            raise ConfigError(
                f"{path} must hold keys and values, got a {type(loaded).__name__}; `ffalora init TABLE` writes them"
            )
        values = loaded or {}
    config = from_mapping(merge(values, overrides or {}))
    config.runs()
    return config


def from_mapping(values: Mapping[str, Any], where: str = "") -> Config:
    """A checked configuration of nested (or dotted) keys."""
    return Config.read(merge({}, values), f"{where}: " if where else "")


def fields() -> dict[str, Any]:
    """Every key of the configuration in dotted form with its pydantic field (for flags and documentation)."""
    return keys_of(Config.model_fields)


def to_yaml(config: Config) -> str:
    """The resolved configuration, every key written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
