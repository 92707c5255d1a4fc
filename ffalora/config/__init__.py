"""One typed configuration of a run and of an adapter, and the sentences that answer a mistake in it."""

from .adapter import AdapterConfig
from .messages import ConfigError
from .run import (
    Config,
    DataConfig,
    FederationConfig,
    ModelConfig,
    OptimizerConfig,
    PrivacyConfig,
    Section,
    fields,
    from_mapping,
    load_config,
    to_yaml,
)
from .values import merge

__all__ = [
    "AdapterConfig",
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
