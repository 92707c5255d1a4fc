"""FFA-LoRA adapters for any transformers model."""

from typing import TYPE_CHECKING, Any

from ..config.adapter import AdapterConfig
from .attach import Adapters, attach
from .layers import AdaptedLinear, TrainedLinear
from .peft import CheckpointError, load_adapters
from .state import Layout, Place
from .training_pass import TrainingPass

if TYPE_CHECKING:
    from .conversion import convert, get_peft_model

__all__ = [
    "AdaptedLinear",
    "AdapterConfig",
    "Adapters",
    "CheckpointError",
    "Layout",
    "Place",
    "TrainedLinear",
    "TrainingPass",
    "attach",
    "convert",
    "get_peft_model",
    "load_adapters",
]


def __getattr__(name: str) -> Any:
    """PEFT is imported at first use: it is needed for its live models only, not for its files."""
    if name in ("convert", "get_peft_model"):
        from importlib import import_module

        return getattr(import_module(f"{__name__}.conversion"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
