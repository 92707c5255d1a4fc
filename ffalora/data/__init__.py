"""Data: embedded assets, local files and hub names; splits; tokenised examples; losses and metrics of each task."""

from .errors import AssetError, DataError
from .examples import CausalDataset, Examples, ImageDataset, TokenizedDataset
from .load import LoadedData, load_data
from .tokenize import prepare

__all__ = [
    "AssetError",
    "CausalDataset",
    "DataError",
    "Examples",
    "ImageDataset",
    "LoadedData",
    "TokenizedDataset",
    "load_data",
    "prepare",
]
