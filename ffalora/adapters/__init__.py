"""FFA-LoRA adapters for any transformers model."""

from .attach import Adapters, attach
from .config import AdapterConfig
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
