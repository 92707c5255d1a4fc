"""FFA-LoRA for private, scattered data: adapters, differential privacy and federated rounds.

Names that need torch are imported at first use, so that the command line and the configuration start at once.
"""

from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .adapters import AdapterConfig, Adapters, attach, convert, get_peft_model, load_adapters
    from .trainer import PrivacyArguments, PrivateTrainer

__all__ = [
    "AdapterConfig",
    "Adapters",
    "PrivacyArguments",
    "PrivateTrainer",
    "__version__",
    "attach",
    "convert",
    "get_peft_model",
    "load_adapters",
]


def __getattr__(name: str) -> Any:
    if name in ("PrivacyArguments", "PrivateTrainer"):
        from . import trainer

        return getattr(trainer, name)
    if name == "AdapterConfig":
        from .config.adapter import AdapterConfig

        return AdapterConfig
    if name in __all__:
        from . import adapters

        return getattr(adapters, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
