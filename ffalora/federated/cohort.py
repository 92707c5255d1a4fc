"""A round's cohort: who is drawn, who is slow or vanishes, what each weighs, and its local training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..training.optim import Moments, lr_factor
from ..training.participant import Participant
from ..training.report import TrainingReport
from .experiment import Experiment
from .strategies import ServerState
from .turns import local_training

_DRAW, _FAULTS = 7, 8
_MOMENTS = "moments."


@dataclass(frozen=True)
class Cohort:
    """Who trains in a round.

    Attributes:
        clients: the participants, ascending by id.
        steps: local steps that each takes before the server stops waiting.
        arrives: whether its row reaches the server.
    """

    clients: list[Participant]
    steps: list[int]
    arrives: list[bool]

    @property
    def ids(self) -> list[int]:
        return [p.client_id for p in self.clients]


def draw_cohort(experiment: Experiment, round_number: int) -> Cohort:
    """The clients drawn for a round and what becomes of them: a function of seed and round (client-level privacy in
    secure mode: of the operating system).

    A client whose budget does not cover another round stays out.
    """
    config, everyone = experiment.config, experiment.participants
    if experiment.client_level is not None:
        chosen = experiment.client_level.open_round(round_number)
        if experiment.charged is not None:
            experiment.charged(experiment.ledgers)
    else:
        count = config.federation.cohort(len(everyone))
        chosen = np.arange(len(everyone))
        if count < len(everyone):
            chosen = np.sort(_generator(config, round_number, _DRAW).choice(chosen, count, replace=False))
    steps, arrives = np.full(len(everyone), config.federation.local_steps), np.ones(len(everyone), dtype=bool)
    if config.federation.straggler_rate or config.federation.dropout_rate:
        steps, arrives = _faults(config, round_number, len(everyone))
    # After a kill in secure mode steps are charged twice, and the last rounds may not be covered.
    ledgers, needed = [each.ledger for each in everyone], config.federation.local_steps
    able = [i for i in chosen.tolist() if (ledger := ledgers[i]) is None or ledger.steps_left >= needed]
    return Cohort([everyone[i] for i in able], [int(steps[i]) for i in able], [bool(arrives[i]) for i in able])


def train_cohort(
    experiment: Experiment,
    server: ServerState,
    cohort: Cohort,
    rows: Tensor,
    moments: Moments | None = None,
    mine: Tensor | None = None,
) -> TrainingReport:
    """Local training of the cohort, from and into ``rows [C,P]``: all clients in one pass, or one after another.

    Args:
        moments: of the rows, changed in place; by default fresh ones, or (``optimizer.keep_moments``) those that the
            server state keeps for its clients.
        mine: bool ``[C]``, the rows that are trained here; None for all.
    """
    federation, optimizer, strategy = experiment.config.federation, experiment.config.optimizer, experiment.strategy
    keeps, mask = moments is None and optimizer.keep_moments, strategy.mask(server, cohort.ids)
    if keeps:
        moments = kept_moments(experiment, server, cohort, rows)
    elif moments is None:
        moments = Moments.zeros(optimizer, len(rows), rows.shape[1], rows.device)
    anchor = rows.clone() if federation.prox_mu else None
    total, first = federation.steps, server.round * federation.local_steps
    factors = [lr_factor(optimizer, first + i, total) for i in range(federation.local_steps)]
    report, train = TrainingReport(len(rows)), local_training(experiment.engine, strategy)
    for index, begin, end in _groups(cohort, trains_in_one_pass(experiment, len(rows)), mine):
        is_all = len(index) == len(rows)
        part, part_moments = (rows, moments) if is_all else (rows[index], moments.rows(index))
        train(
            [cohort.clients[i] for i in index],
            part,
            end - begin,
            anchor=None if anchor is None else anchor[index],
            mu=federation.prox_mu,
            moments=part_moments,
            lr_factors=factors[begin:end],
            mask=None if mask is None else mask[index].to(rows.device),
            report=report,
            index=index,
            first=first + begin,
        )
        if not is_all:
            rows[index] = part
            moments.put_(index, part_moments)
    if keeps:
        keep_moments(server, cohort, moments)
    return report


def kept_moments(experiment: Experiment, server: ServerState, cohort: Cohort, rows: Tensor) -> Moments:
    """The moments that the cohort's rows ended the last round with; zeros where there was none."""
    zeros, ids = Moments.zeros(experiment.config.optimizer, 1, rows.shape[1]).tensors(), cohort.ids
    kept = {name: server.clients.rows(_MOMENTS + name, ids, zero[0]) for name, zero in zeros.items()}
    return Moments(**{name: value.to(rows.device) for name, value in kept.items()})


def keep_moments(server: ServerState, cohort: Cohort, moments: Moments) -> None:
    """Keeps the moments of the cohort's rows."""
    for name, value in moments.tensors().items():
        server.clients.put(_MOMENTS + name, cohort.ids, value)


def trains_in_one_pass(experiment: Experiment, clients: int) -> bool:
    """Whether a cohort shares forward and backward passes: where the method allows it and single batches would be
    small.
    """
    choice = experiment.config.federation.one_pass
    shares_a = all(place.tensor != "lora_A" for place in experiment.adapters.layout.places)
    if clients < 2 or choice == "never" or not shares_a:
        return False
    return choice == "always" or tokens_of_a_batch(experiment) < (experiment.engine.token_budget or 0)


def tokens_of_a_batch(experiment: Experiment) -> float:
    """Tokens that one client's logical step passes through the model, on average: of all views of its samples."""
    rows = experiment.config.optimizer.batch * experiment.config.data.views
    return rows * float(experiment.train.lengths.mean())


def client_weights(clients: Sequence[Participant], config: Config) -> Tensor:
    """Weights of the average, float64 ``[C]``, summing to 1: by data-set sizes or equal."""
    sizes = [len(p.samples) if config.federation.weighting == "size" else 1 for p in clients]
    weights = torch.tensor(sizes, dtype=torch.float64)
    return weights / weights.sum()


def _groups(cohort: Cohort, one_pass: bool, mine: Tensor | None) -> list[tuple[Tensor, int, int]]:
    """Which rows train together, from which local step to which: slow clients leave the pass before the others.

    Args:
        mine: bool ``[C]``, the rows that this process trains; None for all.
    """
    own = [(i, steps) for i, steps in enumerate(cohort.steps) if mine is None or bool(mine[i])]
    if not one_pass:
        return [(torch.tensor([i]), 0, steps) for i, steps in own]
    groups, begin = [], 0
    for end in sorted({steps for _, steps in own}):
        groups.append((torch.tensor([i for i, steps in own if steps >= end]), begin, end))
        begin = end
    return groups


def _faults(config: Config, round_number: int, clients: int) -> tuple[np.ndarray, np.ndarray]:
    """Local steps ``[clients]`` and arrival ``[clients]`` of every client, drawn or not, in a round."""
    federation = config.federation
    drawn = _generator(config, round_number, _FAULTS).random((clients, 3))
    slow, vanishes = drawn[:, 0] < federation.straggler_rate, drawn[:, 1] < federation.dropout_rate
    steps = np.full(clients, federation.local_steps)
    steps[slow] = max(1, round(federation.straggler_work * federation.local_steps))
    steps[vanishes] = 1 + (drawn[vanishes, 2] * steps[vanishes]).astype(np.int64)
    return steps, ~vanishes


def _generator(config: Config, round_number: int, purpose: int) -> np.random.Generator:
    words = np.random.SeedSequence([config.seed, round_number], spawn_key=(purpose,))
    return np.random.Generator(np.random.Philox(words))
