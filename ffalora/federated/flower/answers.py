"""What a server makes of what clients send: which answers count, how far each may move the average, its weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...config import Config
from ..payload import unpacked

#: No client moves its row by more than this many times what the median client moves its own.
NORM_CAP = 10.0
#: No client weighs more than this many times what the median client weighs.
WEIGHT_CAP = 10.0


@dataclass(frozen=True)
class Answer:
    """What a client sends back.

    Attributes:
        client: its id.
        numbers: float32, what ``Wire.upload`` made of its row (as a server reads them, how far they moved, where
            ``federation.payload`` says so); None where secure aggregation hides it.
        arrays: the same as it travels.
        samples: its data-set size, for weights by size; None where its policy does not report it.
        epsilon, final_epsilon: what it has spent and what it will have spent when every allowed step is taken, by its
            own ledger, rounded up to two decimals; None without privacy, and where its policy does not report them.
    """

    client: int
    numbers: np.ndarray | None
    samples: int | None = None
    epsilon: float | None = None
    final_epsilon: float | None = None
    arrays: Sequence[np.ndarray] = ()

    def report(self) -> dict[str, int | float]:
        """What it says beside its numbers, as a message holds it."""
        said = {name: getattr(self, name) for name in ("client", "samples", "epsilon", "final_epsilon")}
        return {name: value for name, value in said.items() if value is not None}


def read_answer(report: Mapping[str, Any], arrays: Sequence[Any] | None, kind: str = "float32") -> Answer:
    """A client's answer from what arrived.

    Args:
        report: the client's words. arrays: its numbers; None where secure aggregation hides them.
        kind: ``federation.payload``.

    Raises:
        ValueError: a word is missing or of another kind, or the arrays are not of this kind.
    """
    client = report.get("client")
    if type(client) is not int:
        raise ValueError(f"client={client!r} is no client's id")
    samples = report.get("samples")
    if samples is not None and (type(samples) is not int or samples < 1):
        raise ValueError(f"client {client}: samples={samples!r} is no number of samples")
    for name in ("epsilon", "final_epsilon"):
        value = report.get(name)
        if value is not None and not (isinstance(value, int | float) and value >= 0):
            raise ValueError(f"client {client}: {name}={value!r} is no ε")
    try:
        numbers = None if arrays is None else unpacked(kind, arrays)
    except ValueError as error:
        raise ValueError(f"client {client}: {error}") from None
    return Answer(client, numbers, samples, report.get("epsilon"), report.get("final_epsilon"))


def sound_answers(
    answers: Sequence[Answer], expected: int, clients: int, needs_samples: bool
) -> tuple[list[Answer], dict[int, str]]:
    """The answers that count, ascending by id, and why the others do not.

    Args:
        answers: of a round. expected: how many numbers each sends.
        clients: of the federation; ids are below it.
        needs_samples: whether they are weighed by size.

    Returns:
        the sound ones, and by client id the reason for each that is left out. Of answers under one id none counts,
        since nobody can tell which is the client's.
    """
    times = Counter(answer.client for answer in answers)
    kept, rejected = [], {}
    for answer in sorted(answers, key=lambda one: one.client):
        reason = _fault(answer.numbers, expected)
        if not 0 <= answer.client < clients:
            reason = f"the ids of this federation are 0 … {clients - 1}"
        elif times[answer.client] > 1:
            reason = f"{times[answer.client]} answers came under this id"
        elif needs_samples and answer.samples is None:
            reason = "it does not say how many samples it has, and federation.weighting is size"
        if reason:
            rejected[answer.client] = reason
        else:
            kept.append(answer)
    return kept, rejected


def _fault(numbers: Any, expected: int) -> str:
    """Why an array cannot be a client's row; '' where it can."""
    if not isinstance(numbers, np.ndarray) or numbers.dtype != np.float32:
        return f"its numbers are {getattr(numbers, 'dtype', type(numbers).__name__)}, not float32"
    if numbers.shape != (expected,):
        return f"it sent an array of shape {numbers.shape}, ({expected},) is expected"
    if not np.isfinite(numbers).all():
        return "NaN or Inf among its numbers"
    return ""


def answer_weights(answers: Sequence[Answer], config: Config) -> Tensor:
    """Weights of the average, float64 ``[C]``, summing to 1: equal, or by what clients say of their sizes, of which no
    client's counts for more than ``WEIGHT_CAP`` times the (lower) median.
    """
    if config.federation.weighting != "size":
        return torch.full((len(answers),), 1 / len(answers), dtype=torch.float64)
    sizes = torch.tensor([float(answer.samples or 0) for answer in answers], dtype=torch.float64)
    capped = sizes.clamp(max=WEIGHT_CAP * float(sizes.median()))
    return capped / capped.sum()


def bound_rows(starts: Tensor, rows: Tensor) -> tuple[Tensor, list[int]]:
    """Shortens what moved much further than the others: rows ``[C,P]`` float32, and which of them were shortened.

    A client's update counts up to ``NORM_CAP`` times the (lower) median norm of those that moved at all. Honest clients
    are far from it; one that sends a million times its update gains a factor of ten.
    """
    updates = rows.double() - starts.double()
    largest = updates.abs().amax(1).clamp(min=1e-300)
    norms = largest * (updates / largest[:, None]).norm(dim=1)
    moved = norms[norms > 0]
    if not len(moved):
        return rows, []
    limit = NORM_CAP * moved.median()
    over = norms > limit
    factors = torch.where(over, limit / norms.clamp(min=1e-300), torch.ones_like(norms))
    bounded = torch.where(over[:, None], starts.double() + updates * factors[:, None], rows.double())
    return bounded.to(rows.dtype), over.nonzero().flatten().tolist()
