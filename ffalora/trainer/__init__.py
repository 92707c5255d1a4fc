"""transformers' ``Trainer`` and TRL's ``SFTTrainer``, made private by one changed line."""

from typing import TYPE_CHECKING, Any

from .private_trainer import LEDGER_FILE, PrivateTrainer
from .terms import PrivacyArguments, default_losses

if TYPE_CHECKING:
    from .trl_trainer import PrivateSFTTrainer

__all__ = ["LEDGER_FILE", "PrivacyArguments", "PrivateSFTTrainer", "PrivateTrainer", "default_losses"]


def __getattr__(name: str) -> Any:
    if name != "PrivateSFTTrainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .trl_trainer import PrivateSFTTrainer
    except ModuleNotFoundError as error:
        if error.name != "trl":
            raise
        raise ModuleNotFoundError("PrivateSFTTrainer needs trl: pip install 'ffalora[trl]'", name="trl") from None
    return PrivateSFTTrainer
