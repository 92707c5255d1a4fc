"""Metrics and predictions of a model on examples, batched by length."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from .data.examples import Examples
from .data.tasks import Task
from .privacy.sampling import physical_batches

_TOKENS = 8192


@torch.inference_mode()
def predict_examples(
    model: nn.Module, examples: Examples, device: torch.device, samples: int | None = None
) -> tuple[Tensor, Tensor]:
    """Logits and targets of the first ``samples`` examples, in their order.

    Returns:
        logits ``[n, ...]`` float32 and targets ``[n, ...]``, on the CPU; longer dimensions are padded with the batch.
    """
    count = len(examples) if samples is None else min(samples, len(examples))
    plan = physical_batches(examples.lengths[:count], _TOKENS, overhead=256)
    outputs: list[Tensor] = [torch.empty(0)] * count
    targets: list[Tensor] = [torch.empty(0)] * count
    for batch in plan.batches:
        inputs, wanted = examples.collate(batch)
        logits = model(**{name: value.to(device) for name, value in inputs.items()}).logits.float().cpu()
        for position, index in enumerate(batch):
            outputs[index], targets[index] = logits[position], wanted[position]
    return torch.stack(outputs), torch.stack(targets)


@torch.inference_mode()
def evaluate_examples(
    model: nn.Module, examples: Examples, task: Task, device: torch.device, samples: int | None = None
) -> dict[str, float]:
    """The task's metrics on the first ``samples`` examples (all by default)."""
    count = len(examples) if samples is None else min(samples, len(examples))
    plan = physical_batches(examples.lengths[:count], _TOKENS, overhead=256)
    gathered = []
    for batch in plan.batches:
        inputs, targets = examples.collate(np.asarray(batch))
        output = model(**{name: value.to(device) for name, value in inputs.items()})
        gathered.append(task.gather(output, targets.to(device)))
    return task.metrics(gathered)
