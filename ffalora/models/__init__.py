"""The pretrained model of a run: loading it, its number format, its pooling, and batches without padding."""

from .idle_mask import needs_no_mask, without_masks
from .load import (
    LoadedModel,
    base_dtype,
    cast_base,
    choose_device,
    compile_model,
    has_fast_bfloat16,
    load_model,
)
from .pooled import KeptMeans, MeanPooledClassifier, mean_of_real

__all__ = [
    "KeptMeans",
    "LoadedModel",
    "MeanPooledClassifier",
    "base_dtype",
    "cast_base",
    "choose_device",
    "compile_model",
    "has_fast_bfloat16",
    "load_model",
    "mean_of_real",
    "needs_no_mask",
    "without_masks",
]
