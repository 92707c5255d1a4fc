"""A merged classifier as one ONNX file, for runtimes without torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from ..config import ConfigError
from .bundle import Bundle
from .modeling_pooled import PooledClassifier

FILE, NEEDS = "model.onnx", ("onnx", "onnxscript")
TASKS = ("classification", "regression")


def check_onnx(task: str) -> None:
    """Refuses what cannot be written, before anything is.

    Raises:
        ConfigError: another task than classification or regression of texts, or a missing library.
    """
    if task not in TASKS:
        raise ConfigError(f"--onnx is for {' and '.join(TASKS)} of texts; this adapter was trained for {task}")
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise ConfigError(f"--onnx needs {' and '.join(missing)}; pip install 'ffalora[onnx]'")


def write_onnx(folder: Path, bundle: Bundle) -> list[str]:
    """Writes ``model.onnx`` beside a merged model that was exported into ``folder``, from what lies there.

    Returns:
        The names of its inputs, int64 ``[texts, tokens]``, both sizes free. Its output is ``logits``, float32
        ``[texts, labels]``.
    """
    kind: Any = PooledClassifier if bundle.loaded.root else AutoModelForSequenceClassification
    model = kind.from_pretrained(folder).eval()
    # two texts of two lengths: a size of one would be taken for a constant
    example = bundle.loaded.tokenizer(["a b", "c"], padding=True, return_tensors="pt")
    names = list(example)
    free = torch.export.Dim.DYNAMIC
    with _quiet():
        torch.onnx.export(
            _ByPosition(model, names),
            tuple(example.values()),
            str(folder / FILE),
            dynamo=True,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=(tuple({0: free, 1: free} for _ in names),),
            external_data=False,
            verbose=False,
        )
    return names


class _ByPosition(nn.Module):
    """A model whose named inputs come in order, and which answers with its logits alone."""

    def __init__(self, model: nn.Module, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True))).logits


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on libraries that are not there and on its own insides."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
