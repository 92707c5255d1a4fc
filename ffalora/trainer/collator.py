"""Whether what a collator makes of a sample is that sample's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

#: Samples that a collator is given together and one by one.
_COMPARED = 8


def source_of(trainer: Any) -> tuple[Any, Callable[[list[Any]], Mapping[str, Any]]]:
    """The training set of a Trainer and its collator, without the columns that the model does not take."""
    dataset, collate = trainer.train_dataset, trainer.data_collator
    if hasattr(dataset, "remove_columns"):
        return trainer._remove_unused_columns(dataset, description="training"), collate
    return dataset, trainer._get_collator_with_removed_columns(collate, description="training")


def check_collator(trainer: Any) -> None:
    """ValueError where a private Trainer's collator makes something else of a sample when others are beside it, padding
    apart: it mixes them, or draws random numbers for positions in the batch.
    """
    dataset, collate = source_of(trainer)
    rows = [dataset[place] for place in range(min(_COMPARED, len(dataset)))]
    together = trainer._apart(collate([copy.copy(row) for row in rows]))
    for place, row in enumerate(rows):
        alone = trainer._apart(collate([copy.copy(row)]))
        for name, whole in together.items():
            if not isinstance(whole, Tensor) or whole.dim() == 0 or len(whole) != len(rows):
                raise ValueError(
                    f"data_collator makes {name!r} of {len(rows)} samples into {_shape(whole)}: every tensor needs one "
                    "row a sample, that one sample's gradient is its own"
                )
            if not _same_but_padding(alone[name][0], whole[place]):
                raise ValueError(
                    f"data_collator makes another {name!r} of sample {place} when others are beside it: a sample's row "
                    "must be a function of that sample alone; use a collator that only pads, and draw random numbers "
                    "(masks of tokens) for the data set before training"
                )


def _same_but_padding(alone: Tensor, row: Tensor) -> bool:
    """Whether one row is the other, longer by one repeated value at one of its ends."""
    if alone.shape[1:] != row.shape[1:] or alone.dim() == 0:
        return torch.equal(alone, row)
    extra = len(row) - len(alone)
    if extra < 0:
        return False
    for body, padding in ((row[: len(alone)], row[len(alone) :]), (row[extra:], row[:extra])):
        if torch.equal(body, alone) and bool((padding == padding[:1]).all()):
            return True
    return False


def _shape(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
