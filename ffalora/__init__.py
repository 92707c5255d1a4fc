"""FFA-LoRA for private, scattered data: adapters, differential privacy and federated rounds.

Names are imported at first use, so that the command line and the configuration start at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .adapters import Adapters, CheckpointError, attach, convert, get_peft_model, load_adapters
    from .config import (
        AdapterConfig,
        ClientsConfig,
        Config,
        ConfigError,
        DataConfig,
        FederationConfig,
        ModelConfig,
        OptimizerConfig,
        PrivacyConfig,
        load_config,
    )
    from .data import DataError, load_data
    from .federated.one_site import train
    from .federated.simulate import simulate
    from .privacy.accountants import noise_multiplier_for
    from .privacy.accounting import LedgerMismatch, PrivacyBudgetSpent, PrivacyLedger
    from .privacy.clipping import sensitivity
    from .privacy.noise import SecureNoise, SeededNoise
    from .privacy.sampling import SeededDraw, SystemDraw
    from .privacy.statement import PrivacyStatement
    from .runs.bundle import evaluate, predict
    from .runs.export import export
    from .runs.folder import RunResult
    from .runs.hub import push_to_hub
    from .runs.tables import predict_file
    from .trainer import PrivacyArguments, PrivateTrainer
    from .training.gradients import segment_gradients
    from .training.private_gradient import PrivateGradient
    from .training.probe import Probe

__all__ = [
    "AdapterConfig",
    "Adapters",
    "CheckpointError",
    "ClientsConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "DataError",
    "FederationConfig",
    "LedgerMismatch",
    "ModelConfig",
    "OptimizerConfig",
    "PrivacyArguments",
    "PrivacyBudgetSpent",
    "PrivacyConfig",
    "PrivacyLedger",
    "PrivacyStatement",
    "PrivateGradient",
    "PrivateTrainer",
    "Probe",
    "RunResult",
    "SecureNoise",
    "SeededDraw",
    "SeededNoise",
    "SystemDraw",
    "__version__",
    "attach",
    "convert",
    "evaluate",
    "export",
    "get_peft_model",
    "load_adapters",
    "load_config",
    "load_data",
    "noise_multiplier_for",
    "predict",
    "predict_file",
    "push_to_hub",
    "segment_gradients",
    "sensitivity",
    "simulate",
    "train",
]

#: Where the names live that are imported at first use.
_HOMES = {
    "adapters": ("Adapters", "CheckpointError", "attach", "convert", "get_peft_model", "load_adapters"),
    "config": (
        "AdapterConfig",
        "ClientsConfig",
        "Config",
        "ConfigError",
        "DataConfig",
        "FederationConfig",
        "ModelConfig",
        "OptimizerConfig",
        "PrivacyConfig",
        "load_config",
    ),
    "data": ("DataError", "load_data"),
    "federated.one_site": ("train",),
    "federated.simulate": ("simulate",),
    "privacy.accountants": ("noise_multiplier_for",),
    "privacy.accounting": ("LedgerMismatch", "PrivacyBudgetSpent", "PrivacyLedger"),
    "privacy.clipping": ("sensitivity",),
    "privacy.noise": ("SecureNoise", "SeededNoise"),
    "privacy.sampling": ("SeededDraw", "SystemDraw"),
    "privacy.statement": ("PrivacyStatement",),
    "runs.bundle": ("evaluate", "predict"),
    "runs.export": ("export",),
    "runs.folder": ("RunResult",),
    "runs.hub": ("push_to_hub",),
    "runs.tables": ("predict_file",),
    "trainer": ("PrivacyArguments", "PrivateTrainer"),
    "training.gradients": ("segment_gradients",),
    "training.private_gradient": ("PrivateGradient",),
    "training.probe": ("Probe",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
