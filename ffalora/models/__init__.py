"""The pretrained model of a run: loading it, number format, length and pooling, and batches without padding."""

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
from .positions import max_positions

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
    "max_positions",
    "mean_of_real",
    "needs_no_mask",
    "without_masks",
]
