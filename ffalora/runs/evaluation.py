"""Metrics and predictions of a model on examples, batched by length."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.errors import DataError
from ..data.examples import Examples
from ..data.spelling import one_spelling
from ..data.tasks import Gathered, Task, causal_losses
from ..data.validate import is_missing
from ..models.frozen_head import can_leave_head_out, head_left_out
from ..training.batches import physical_batches

logger = logging.getLogger(__name__)

_TOKENS = 8192


@torch.inference_mode()
def predict_examples(model: nn.Module, examples: Examples, device: torch.device) -> Tensor:
    """Logits ``[n, labels]`` float32 of all examples, in their order, on the CPU."""
    outputs: list[Tensor] = [torch.empty(0)] * len(examples)
    for batch, output, _ in _passes(model, examples, device, len(examples)):
        for index, logits in zip(batch, output.logits.float().cpu(), strict=True):
            outputs[index] = logits
    return torch.stack(outputs)


@torch.inference_mode()
def gather_examples(
    model: nn.Module, examples: Examples, task: Task, device: torch.device, samples: int | None = None
) -> Gathered:
    """What the task's metrics need of the first ``samples`` examples (all by default), in their order.

    Raises:
        DataError: there are none.
    """
    count = len(examples) if samples is None else min(samples, len(examples))
    if not count:
        raise DataError("there is nothing to compute metrics of: no row was evaluated")
    order, found = [], []
    first = {name: value.to(device) for name, value in examples.collate([0])[0].items()}
    is_apart = task.losses is causal_losses and can_leave_head_out(model, first)  # losses do without logits
    with head_left_out(model) if is_apart else nullcontext():
        for batch, *results in _passes(model, examples, device, count):
            order.append(batch)
            found.append(task.gather(*results))
    places = np.argsort(np.concatenate(order))
    gathered = {name: torch.cat([batch[name] for batch in found]).cpu().double().numpy()[places] for name in found[0]}
    lost = int((~np.isfinite(gathered["loss"])).sum())
    if lost:
        logger.warning(
            "the model's outputs for %d of %d evaluated rows are not finite, and count as wrong; it has diverged: "
            "lower optimizer.lr, or compute in a wider model.dtype",
            *(lost, count),
        )
    return gathered


def metrics_of_groups(gathered: Gathered, task: Task, groups: Sequence[Any]) -> dict[str, dict[str, float]]:
    """The number of rows and the task's metrics of each group alone; ``groups`` names each sample's, or none."""
    spelling = one_spelling(groups)
    called = [spelling[group] if isinstance(group, str) else str(group) for group in groups]
    names = np.asarray(["(none)" if is_missing(group) else name for group, name in zip(groups, called, strict=True)])
    of_group = {name: names == name for name in sorted(set(names))}
    return {
        str(name): {"rows": int(held.sum())} | task.metrics({key: values[held] for key, values in gathered.items()})
        for name, held in of_group.items()
    }


def _passes(
    model: nn.Module, examples: Examples, device: torch.device, count: int
) -> Iterator[tuple[np.ndarray, Any, Tensor]]:
    """Indices, output and targets of one batch after another: the first ``count`` examples, sorted by length."""
    for batch in physical_batches(examples.lengths[:count], _TOKENS, overhead=256).batches:
        inputs, targets = examples.collate(batch)
        yield batch, model(**{name: value.to(device) for name, value in inputs.items()}), targets.to(device)
