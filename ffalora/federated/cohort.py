"""A round's cohort: who is drawn, who is slow or vanishes, what each weighs, and its local training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..training.optim import Moments, lr_factor
from ..training.participant import Participant
from ..training.report import TrainingReport
from .experiment import Experiment
from .strategies import ServerState

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

    def __len__(self) -> int:
        return len(self.clients)

    @property
    def ids(self) -> list[int]:
        return [p.client_id for p in self.clients]

    @classmethod
    def joined(cls, cohorts: Sequence[Cohort]) -> Cohort:
        """The clients of several runs, one run after another."""
        return cls(
            [client for each in cohorts for client in each.clients],
            [steps for each in cohorts for steps in each.steps],
            [arrives for each in cohorts for arrives in each.arrives],
        )


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
        count = max(1, round(config.federation.participation * len(everyone)))
        chosen = np.arange(len(everyone))
        if count < len(everyone):
            chosen = np.sort(_generator(config, round_number, _DRAW).choice(chosen, count, replace=False))
    steps, arrives = _faults(config, round_number, len(everyone))
    able = [i for i in chosen.tolist() if _may_train(everyone[i], config)]
    return Cohort([everyone[i] for i in able], [int(steps[i]) for i in able], [bool(arrives[i]) for i in able])


@dataclass(frozen=True)
class LocalWork:
    """What a run has its cohort do in a round: train ``rows [C,P]``, which change in place."""

    experiment: Experiment
    server: ServerState
    cohort: Cohort
    rows: Tensor


def train_cohort(experiment: Experiment, server: ServerState, cohort: Cohort, rows: Tensor) -> TrainingReport:
    """Local training of the cohort, from and into ``rows [C,P]``: all clients in one pass, or one after another.

    Moments that outlive rounds are kept among the server's tensors, one row a client of the federation.
    """
    return train_cohorts([LocalWork(experiment, server, cohort, rows)])[0]


def train_cohorts(work: Sequence[LocalWork]) -> list[TrainingReport]:
    """Local training of the cohorts of several runs on one engine, in the same round of each: as one large cohort.

    Returns:
        one report a run.
    """
    experiment, server = work[0].experiment, work[0].server
    federation, optimizer = experiment.config.federation, experiment.config.optimizer
    cohort = Cohort.joined([one.cohort for one in work])
    rows = work[0].rows if len(work) == 1 else torch.cat([one.rows for one in work])
    anchor = rows.clone() if federation.prox_mu else None
    own = Moments.stacked([_own_moments(one) for one in work])
    total, first = federation.rounds * federation.local_steps, server.round * federation.local_steps
    factors = [lr_factor(optimizer, first + i, total) for i in range(federation.local_steps)]
    masks = [one.experiment.strategy.mask(one.server, one.cohort.ids) for one in work]
    mask = None if masks[0] is None else torch.cat(masks)
    reports = []
    for index, begin, end in _groups(cohort, trains_in_one_pass(experiment, len(cohort))):
        is_all = len(index) == len(rows)
        part, part_moments = (rows, own) if is_all else (rows[index], own.rows(index))
        report = experiment.engine.train(
            [cohort.clients[i] for i in index],
            part,
            end - begin,
            anchor=None if anchor is None else anchor[index],
            mu=federation.prox_mu,
            moments=part_moments,
            lr_factors=factors[begin:end],
            mask=None if mask is None else mask[index].to(rows.device),
        )
        reports.append((index, report))
        if not is_all:
            rows[index] = part
            own.put_(index, part_moments)
    whole, spans = TrainingReport.merged(len(cohort), reports), _spans(work)
    for one, (begin, end) in zip(work, spans, strict=True):
        if len(work) > 1:
            one.rows.copy_(rows[begin:end])
        if optimizer.keep_moments:
            _keep_moments(one, own if len(work) == 1 else own.rows(torch.arange(begin, end)))
    return [whole.part(begin, end) for begin, end in spans]


def _spans(work: Sequence[LocalWork]) -> list[tuple[int, int]]:
    """From which row to which each run's clients are."""
    return list(pairwise(accumulate((len(one.cohort) for one in work), initial=0)))


def trains_in_one_pass(experiment: Experiment, clients: int) -> bool:
    """Whether a cohort shares forward and backward passes: where the method allows it and single batches would be
    small.
    """
    choice = experiment.config.federation.one_pass
    if clients < 2 or choice == "never" or not experiment.strategy.shares_a:
        return False
    batch_tokens = experiment.config.optimizer.batch_size * float(experiment.train.lengths.mean())
    return choice == "always" or batch_tokens < (experiment.engine.token_budget or 0)


def client_weights(clients: Sequence[Participant], config: Config) -> Tensor:
    """Weights of the average, float64 ``[C]``, summing to 1: by data-set sizes or equal."""
    sizes = [len(p.samples) if config.federation.weighting == "size" else 1 for p in clients]
    weights = torch.tensor(sizes, dtype=torch.float64)
    return weights / weights.sum()


def _groups(cohort: Cohort, one_pass: bool) -> list[tuple[Tensor, int, int]]:
    """Which rows train together, from which local step to which: slow clients leave the pass before the others."""
    if not one_pass:
        return [(torch.tensor([i]), 0, steps) for i, steps in enumerate(cohort.steps)]
    groups, begin = [], 0
    for end in sorted(set(cohort.steps)):
        groups.append((torch.tensor([i for i, steps in enumerate(cohort.steps) if steps >= end]), begin, end))
        begin = end
    return groups


def _own_moments(work: LocalWork) -> Moments:
    """The moments that the cohort's rows start from: fresh ones, unless they outlive rounds."""
    optimizer, rows = work.experiment.config.optimizer, work.rows
    if not optimizer.keep_moments:
        return Moments.zeros(optimizer, len(rows), rows.shape[1], rows.device)
    return _kept_moments(work).rows(torch.tensor(work.cohort.ids, dtype=torch.int64))


def _keep_moments(work: LocalWork, rows: Moments) -> None:
    everyone = _kept_moments(work)
    everyone.put_(torch.tensor(work.cohort.ids, dtype=torch.int64), rows)
    work.server.tensors |= {_MOMENTS + name: value for name, value in everyone.tensors().items()}


def _kept_moments(work: LocalWork) -> Moments:
    """Of all clients of the federation, drawn or not."""
    tensors, rows, config = work.server.tensors, work.rows, work.experiment.config
    kept = {n.removeprefix(_MOMENTS): value for n, value in tensors.items() if n.startswith(_MOMENTS)}
    if kept:
        return Moments(**{name: value.to(rows.device) for name, value in kept.items()})
    return Moments.zeros(config.optimizer, work.experiment.strategy.clients, rows.shape[1], rows.device)


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


def _may_train(participant: Participant, config: Config) -> bool:
    """After a kill in secure mode steps are charged twice, and the last rounds may not be covered."""
    return participant.ledger is None or participant.ledger.steps_left >= config.federation.local_steps
