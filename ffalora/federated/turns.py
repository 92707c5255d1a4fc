"""Local steps that take turns: each trains one factor of every adapter, beside the client's own other factor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ..training.engine import Engine
from ..training.optim import Moments
from ..training.participant import Participant
from ..training.report import TrainingReport
from .strategies import LALoRA, Strategy


def local_training(engine: Engine, strategy: Strategy) -> Callable[..., object]:
    """How a method trains clients: ``Engine.train``, or its steps in turns."""
    return partial(train_in_turns, engine, strategy) if isinstance(strategy, LALoRA) else engine.train


def train_in_turns(
    engine: Engine,
    strategy: LALoRA,
    cohort: Sequence[Participant],
    rows: Tensor,
    steps: int,
    moments: Moments | None = None,
    lr_factors: Sequence[float] | None = None,
    anchor: Tensor | None = None,
    report: TrainingReport | None = None,
    first: int = 0,
    **how: Any,
) -> TrainingReport:
    """As ``Engine.train``: ``steps`` logical steps of one client, from and into ``rows [1,P]`` in the columns of
    ``strategy.layout``.

    A turn is a whole private step of the columns that it trains: nothing else is differentiated, clipped, noised or
    moved, and it is charged as any step is. Each factor goes on from its own moments, with an age of its own.

    Args:
        first: local steps of the run before these: whose turn it is follows from their count.
        how: passed on to ``Engine.train``.

    Returns:
        The report, by default a fresh one.
    """
    report = TrainingReport(len(rows)) if report is None else report
    moments = moments or Moments.zeros(engine.optimizer, len(rows), rows.shape[1], rows.device)
    own = {factor: moments.columns(strategy.columns(factor)) for factor in strategy.turns}
    for step in range(steps):
        factor = strategy.turns[(first + step) % len(strategy.turns)]
        columns = strategy.columns(factor).to(rows.device)
        strategy.layout.scatter(rows[0])  # the factor that stays is read from the model
        strategy.adapters.train_factors(factor)
        part = rows[:, columns]
        engine.train(
            cohort,
            part,
            1,
            moments=own[factor],
            lr_factors=lr_factors and lr_factors[step : step + 1],
            anchor=None if anchor is None else anchor[:, columns],
            report=report,
            first=first + step,
            **how,
        )
        rows[:, columns] = part
    strategy.adapters.train_factors(strategy.trained)
    return report
