"""FFA-LoRA for private, scattered data: adapters, differential privacy and federated rounds."""

from ._version import __version__
from .adapters import AdapterConfig, Adapters, attach, load_adapters

__all__ = ["AdapterConfig", "Adapters", "__version__", "attach", "load_adapters"]
