"""transformers' ``Trainer``, made private by one changed line."""

from .private_trainer import LEDGER_FILE, PrivateTrainer
from .terms import PrivacyArguments, default_losses

__all__ = ["LEDGER_FILE", "PrivacyArguments", "PrivateTrainer", "default_losses"]
