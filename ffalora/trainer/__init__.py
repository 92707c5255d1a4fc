"""transformers' ``Trainer`` and TRL's ``SFTTrainer`` and ``DPOTrainer``, made private by one changed line."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .private_trainer import LEDGER_FILE, PrivateTrainer
from .terms import PrivacyArguments, default_losses

if TYPE_CHECKING:
    from .dpo_trainer import PrivateDPOTrainer
    from .sft_trainer import PrivateSFTTrainer

__all__ = [
    "LEDGER_FILE",
    "PrivacyArguments",
    "PrivateDPOTrainer",
    "PrivateSFTTrainer",
    "PrivateTrainer",
    "default_losses",
]
_OF_TRL = {"PrivateDPOTrainer": ".dpo_trainer", "PrivateSFTTrainer": ".sft_trainer"}


def __getattr__(name: str) -> Any:
    if name not in _OF_TRL:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_OF_TRL[name], __name__), name)
    except ModuleNotFoundError as error:
        if error.name != "trl":
            raise
        raise ModuleNotFoundError(f"{name} needs trl: pip install 'ffalora[trl]'", name="trl") from None
