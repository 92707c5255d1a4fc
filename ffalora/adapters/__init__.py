"""FFA-LoRA adapters for any model of torch; with transformers, PEFT and their files where those are installed.

What needs more than torch is imported at first use: configurations (pydantic), files (safetensors), PEFT's live models.
"""

from typing import TYPE_CHECKING, Any

from .attach import attach
from .handle import Adapters
from .layers import AdaptedLinear, TrainedLinear
from .state import Layout, Place
from .training_pass import TrainingPass

if TYPE_CHECKING:
    from ..config.adapter import AdapterConfig
    from .conversion import convert, get_peft_model
    from .peft_load import CheckpointError, load_adapters

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

_LATER = {
    "AdapterConfig": "..config.adapter",
    "CheckpointError": ".peft_load",
    "convert": ".conversion",
    "get_peft_model": ".conversion",
    "load_adapters": ".peft_load",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATER[name], __name__), name)
