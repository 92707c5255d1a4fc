"""What each task minimises and reports: losses per sample for training, metrics for evaluation.

A sample's loss depends on its own outputs and targets only, is float32 and is never averaged over the batch: the sum of
the losses is what differential privacy differentiates. Metrics are computed from what ``gather`` keeps of each batch,
which is small (never the logits of a vocabulary).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional

from .errors import DataError
from .examples import IGNORE_INDEX
from .head_loss import HeadStates

#: Metrics of which less is better.
LOWER_IS_BETTER = frozenset({"loss", "mse", "perplexity"})
Gathered = dict[str, np.ndarray]  # float64, per sample: first dimension S


#: (output of the model, targets) -> one loss a sample ``[S]``, from its own tokens only.
Losses = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """One kind of learning.

    losses   (outputs, targets) -> float32 [S]; ``outputs`` has ``logits``, or is the logits themselves
    gather   (outputs, targets) -> what metrics need of one batch
    metrics  all batches' gathered values -> metrics by name, always with "loss", the mean of the samples' losses
    reports  the names of these metrics
    """

    name: str
    losses: Losses
    gather: Callable[[Any, Tensor], dict[str, Tensor]]
    metrics: Callable[[Gathered], dict[str, float]]
    reports: tuple[str, ...]


def logits_of(outputs: Any) -> Any:
    """The logits of a transformers output (or what stands for them), or the tensor itself."""
    return outputs if isinstance(outputs, Tensor) else outputs.logits


def chosen(logits: Tensor) -> Tensor:
    """The class, or token, of the largest of logits ``[…, classes]``: int64 ``[…]``, and -1, which is none, where NaN
    or infinity is among them (what a model rules out may be -infinity).
    """
    return logits.argmax(dim=-1).masked_fill(~(logits < math.inf).all(dim=-1), -1)


def classification_losses(outputs: Any, targets: Tensor) -> Tensor:
    """Cross-entropy per sample: logits [S, classes], targets int64 [S] -> float32 [S]."""
    return functional.cross_entropy(logits_of(outputs).float(), targets, reduction="none")


def regression_losses(outputs: Any, targets: Tensor) -> Tensor:
    """Squared error per sample: logits and targets [S, 1] or [S] -> float32 [S]."""
    targets = targets.squeeze(-1) if targets.dim() == 2 else targets
    return (logits_of(outputs).float().reshape(targets.shape) - targets.float()).square()


def standardised(labels: Any, label_range: Sequence[float] | None) -> Any:
    """Numbers (a tensor, an array, a float) as models learn them: the ends of their range are -1 and 1; without a range
    as they are.
    """
    if label_range is None:
        return labels
    low, high = label_range
    return (labels - (high + low) / 2) / ((high - low) / 2)


def in_units(answers: Any, label_range: Sequence[float] | None) -> Any:
    """A model's answers in the units of the labels, of which it learned what :func:`standardised` gives."""
    if label_range is None:
        return answers
    low, high = label_range
    return answers * ((high - low) / 2) + (high + low) / 2


def causal_losses(outputs: Any, targets: Tensor) -> Tensor:
    """Mean cross-entropy over a sample's own target tokens: logits [S, T, V], targets int64 [S, T] -> float32 [S].

    ``targets`` are the input tokens themselves (IGNORE_INDEX where none is counted): position t is predicted at t - 1.
    A sample without target tokens has loss 0. Outputs with :class:`HeadStates` for logits are never made logits of.
    """
    sums, counts, _ = token_losses(outputs, targets)
    return sums / counts.clamp(min=1)


def token_losses(outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each sample's target tokens: sum of losses, number, and number of right predictions, ``[S]`` each."""
    logits = logits_of(outputs)
    if isinstance(logits, HeadStates):
        return logits.token_losses(targets)
    following, logits = targets[:, 1:], logits[:, :-1]
    flat = logits.reshape(-1, logits.shape[-1]).float(), following.reshape(-1)
    losses = functional.cross_entropy(*flat, reduction="none").view_as(following)
    right = chosen(logits) == following  # IGNORE_INDEX equals no token
    return losses.sum(dim=1), (following != IGNORE_INDEX).sum(dim=1), right.sum(dim=1)


def _gather_classes(outputs: Any, targets: Tensor) -> dict[str, Tensor]:
    return {
        "predicted": chosen(logits_of(outputs)),
        "target": targets,
        "loss": classification_losses(outputs, targets),
    }


def _gather_numbers(outputs: Any, targets: Tensor) -> dict[str, Tensor]:
    predicted = logits_of(outputs).float().reshape(targets.shape)
    return {"predicted": predicted, "target": targets.float(), "loss": regression_losses(outputs, targets)}


def _gather_tokens(outputs: Any, targets: Tensor) -> dict[str, Tensor]:
    sums, counts, right = token_losses(outputs, targets)
    return {"sum": sums, "tokens": counts, "right": right, "loss": sums / counts.clamp(min=1)}


def class_metrics(gathered: Gathered) -> dict[str, float]:
    """Accuracy and macro-averaged F1 (over the classes that occur in targets or predictions); -1 is always wrong."""
    from sklearn.metrics import f1_score

    predicted, target = gathered["predicted"].astype(np.int64), gathered["target"].astype(np.int64)
    classes = np.union1d(target, predicted[predicted >= 0])
    return {
        "accuracy": float(np.mean(predicted == target)),
        "macro_f1": float(f1_score(target, predicted, labels=classes, average="macro", zero_division=0.0)),
        "loss": float(np.mean(gathered["loss"])),
    }


def number_metrics(gathered: Gathered) -> dict[str, float]:
    """Mean squared error, and Pearson's correlation (0 where predictions or targets are constant, or not finite)."""
    from scipy.stats import pearsonr

    predicted, target = gathered["predicted"], gathered["target"]
    constant = len(target) < 2 or not np.isfinite(predicted).all() or np.ptp(predicted) == 0 or np.ptp(target) == 0
    return {
        "mse": float(np.mean((predicted - target) ** 2)),
        "pearson": 0.0 if constant else float(pearsonr(predicted, target).statistic),
        "loss": float(np.mean(gathered["loss"])),
    }


def token_metrics(gathered: Gathered) -> dict[str, float]:
    """Perplexity over all target tokens together, and how often the next token was the likeliest."""
    tokens = max(gathered["tokens"].sum(), 1.0)
    return {
        "perplexity": float(np.exp(gathered["sum"].sum() / tokens)),
        "token_accuracy": float(gathered["right"].sum() / tokens),
        "loss": float(np.mean(gathered["loss"])),
    }


_OF_CLASSES = (classification_losses, _gather_classes, class_metrics, ("accuracy", "macro_f1", "loss"))
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("classification", *_OF_CLASSES),
        Task("image-classification", *_OF_CLASSES),
        Task("regression", regression_losses, _gather_numbers, number_metrics, ("mse", "pearson", "loss")),
        Task("causal-lm", causal_losses, _gather_tokens, token_metrics, ("perplexity", "token_accuracy", "loss")),
    )
}


def find_task(name: str, label_range: Sequence[float] | None = None) -> Task:
    """The task of that name; ``DataError`` lists the known names otherwise.

    With ``label_range``, for regression, targets come in their own units: losses are of standardised numbers, and
    what is gathered (and so the mean squared error) is in these units.
    """
    try:
        task = TASKS[name]
    except KeyError:
        raise DataError(f"task={name!r}: choose one of {', '.join(TASKS)}") from None
    return task if label_range is None else _of_numbers_in_units(task, label_range)


def _of_numbers_in_units(task: Task, label_range: Sequence[float]) -> Task:
    def losses(outputs: Any, targets: Tensor) -> Tensor:
        return task.losses(outputs, standardised(targets, label_range))

    def gather(outputs: Any, targets: Tensor) -> dict[str, Tensor]:
        found = task.gather(outputs, standardised(targets, label_range))
        return found | {"predicted": in_units(found["predicted"], label_range), "target": targets.float()}

    return replace(task, losses=losses, gather=gather)
