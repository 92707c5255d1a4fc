"""One typed configuration of a run and of an adapter, and the sentences that answer a mistake in it."""

from .adapter import AdapterConfig
from .messages import ConfigError
from .model import ModelConfig
from .privacy import PrivacyConfig
from .run import Config, fields, from_mapping, load_config, to_yaml
from .section import Section
from .sections import ClientsConfig, DataConfig, FederationConfig, OptimizerConfig
from .values import merge

__all__ = [
    "AdapterConfig",
    "ClientsConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "FederationConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PrivacyConfig",
    "Section",
    "fields",
    "from_mapping",
    "load_config",
    "merge",
    "to_yaml",
]
