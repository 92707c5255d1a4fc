"""The pretrained model of a run: loading it, its number format, its pooling, and batches without padding."""

from .load import (
    LoadedModel,
    MeanPooledClassifier,
    base_dtype,
    cast_base,
    choose_device,
    compile_model,
    has_fast_bfloat16,
    load_model,
    needs_no_mask,
)

__all__ = [
    "LoadedModel",
    "MeanPooledClassifier",
    "base_dtype",
    "cast_base",
    "choose_device",
    "compile_model",
    "has_fast_bfloat16",
    "load_model",
    "needs_no_mask",
]
