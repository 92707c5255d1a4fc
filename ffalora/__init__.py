"""FFA-LoRA for private, scattered data: adapters, differential privacy and federated rounds."""

from ._version import __version__

__all__ = ["__version__"]
