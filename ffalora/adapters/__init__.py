"""FFA-LoRA adapters for any transformers model."""

from ..adapter_config import AdapterConfig
from .attach import Adapters, attach
from .layers import AdaptedLinear, TrainedLinear
from .peft import CheckpointError, load_adapters
from .state import Layout, Place
from .training_pass import TrainingPass

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
    "load_adapters",
]
