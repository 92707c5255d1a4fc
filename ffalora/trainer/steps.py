"""What a private Trainer iterates over, what it asks of its samples and its optimiser, and what it saves."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import Dataset

from ..adapters import Adapters, Layout
from ..privacy.sampling import Indices
from ..training.batches import physical_batches


def lengths_of(features: list[Any]) -> list[int]:
    """Tokens of each sample, of a preference pair those of the prompt with the longer answer; 1 where it has none."""
    return [_length(feature) for feature in features]


def _length(feature: Any) -> int:
    if "chosen_ids" in feature:
        return len(feature["prompt_ids"]) + max(len(feature["chosen_ids"]), len(feature["rejected_ids"]))
    return len(feature["input_ids"]) if "input_ids" in feature else 1


def cut(features: list[Any], size: int) -> tuple[Indices, ...]:
    """Positions of the samples of each physical batch, of at most ``size`` samples."""
    lengths = lengths_of(features)
    return physical_batches(lengths, max(1, size * max(lengths, default=1)), max_samples=size).batches


def classes_of(features: list[Any], name: str) -> np.ndarray | None:
    """The labels where each sample has one number."""
    labels = [f.get(name) if hasattr(f, "get") else None for f in features]
    return np.array(labels) if all(label is not None and np.ndim(label) == 0 for label in labels) else None


def without_targets(inputs: Any, name: str) -> tuple[Any, Tensor]:
    """A collator's batch apart: inputs, and the targets that are called ``name``; ValueError where there are none."""
    if name not in inputs:
        raise ValueError(
            f"data_collator gives {', '.join(inputs)} but no {name!r}, the first of label_names; have it give the "
            "labels under that name, or set TrainingArguments(label_names=[…])"
        )
    targets = inputs.pop(name)
    return inputs, targets


def check_optimizer(optimizer: Optimizer, layout: Layout) -> None:
    """The optimiser must change the very tensors that the model reads; ValueError names one that it does not hold."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [place.name for place in layout.places if id(layout.parameter(place)) not in held]
    if missing:
        raise ValueError(
            f"the optimiser does not hold {missing[0]} (of {len(missing)}): noise would be spent on nothing"
        )


def save_adapter(adapters: Adapters, folder: str, processing_class: Any) -> None:
    """PEFT's files of an adapter, and those of what prepares its model's inputs."""
    adapters.save(folder)
    if processing_class is not None:
        processing_class.save_pretrained(folder)


class LogicalSteps(Dataset):
    """What the Trainer iterates over: the numbers of an epoch's logical steps."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"step": index}
