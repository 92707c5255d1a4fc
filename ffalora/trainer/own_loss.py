"""Whether a private Trainer trains the loss that the model, or a script's Trainer, defines."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from transformers import Trainer

from ..data.tasks import Losses, causal_losses
from .collator import check_collator

#: Samples on which the two are compared; means of tokens agree on one sample alone.
_COMPARED = 8
#: Relative difference that rounding explains, for float32 and for narrower models or autocast.
_WIDE, _NARROW = 1e-3, 5e-2


def check_trainer(trainer: type[Trainer], model: Any, losses: Losses | None) -> None:
    """What a private Trainer cannot take over from its caller.

    Raises:
        ValueError: no model, or a ``compute_loss`` of the caller's own without ``losses``.
    """
    if model is None:
        raise ValueError(
            f"{trainer.__name__}(model=None): adapters belong to a model that is there; give model=model_init()"
        )
    owner = next(each for each in trainer.__mro__ if "compute_loss" in vars(each))
    if losses is None and owner.__module__.partition(".")[0] not in ("transformers", "trl", "ffalora"):
        raise ValueError(
            f"{owner.__name__}.compute_loss gives one loss a batch and is not called by private steps, which need one "
            "a sample: pass it as losses=(outputs, labels) -> [S]"
        )


@torch.no_grad()
def check_samples(trainer: Any) -> None:
    """Whether a ``PrivateTrainer`` has samples to train on, which its collator keeps apart, and whose default loss is
    the model's own: the two are compared on the first samples where the model's forward takes labels.

    Raises:
        ValueError: there are no samples, the collator mixes them, or the two losses differ.
    """
    if trainer.train_dataset is None or not len(trainer.train_dataset):
        given = "None" if trainer.train_dataset is None else "no row"
        raise ValueError(f"train_dataset={given}: PrivateTrainer needs the samples that it is to train on")
    check_collator(trainer)
    model, losses, label = trainer.model, trainer._losses, trainer._label_name
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if trainer._losses_are_given or label not in inspect.signature(inner.forward).parameters:
        return
    count = min(1 if losses is causal_losses else _COMPARED, len(trainer.train_dataset))
    mode = model.training
    model.eval()
    try:
        with trainer.compute_loss_context_manager():
            samples, inputs, targets = type(trainer)._physical(trainer, np.arange(count))[0]
            outputs = model(**inputs, **{label: targets})
            if getattr(outputs, "loss", None) is None:
                return
            own, ours = float(outputs.loss), float(losses(outputs, targets).mean())
    finally:
        model.train(mode)
    limit = _WIDE if outputs.logits.dtype == torch.float32 and not trainer.args.bf16 else _NARROW
    if np.isfinite([own, ours]).all() and abs(own - ours) > limit * max(abs(own), abs(ours), limit):
        raise ValueError(
            f"{type(inner).__name__}'s own loss of {len(samples)} samples is {own:.4g}, the default per-sample loss "
            f"({getattr(losses, '__name__', losses)}) {ours:.4g}: another loss would be trained than the model "
            "defines; pass losses=(outputs, labels) -> [S]"
        )
