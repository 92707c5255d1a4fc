"""The mechanism of a configured run, probed before its noise: what one sample, or one client, moves the sum by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from torch import Tensor

from ..federated.cohort import Cohort, train_cohort, trains_in_one_pass
from ..federated.experiment import Experiment
from ..federated.strategies import LALoRA
from ..privacy.client_level import clip_updates
from ..training.sensitivity import (
    Sensitivity,
    extremes,
    limit_of,
    moved_by_noise,
    moves,
    probe_sensitivity,
    secret_noise,
    tight_norm,
    with_random,
)

#: Most clients of a federation whose records are left out, each in turn, where they share a pass.
_CLIENTS = 3


def probe_mechanism(experiment: Experiment, records: int = 6) -> Sensitivity:
    """Leaves records (or, at client level, clients) of the run's own data out, by the path that trains.

    Args:
        experiment: as built from the run's configuration; its own numbers are not changed, and nobody is charged.
        records: random ones left out of a batch, beside chosen ones.

    Raises:
        ValueError: nothing is protected; or whatever training itself refuses.
    """
    if experiment.client_level is not None:
        return _probe_clients(experiment, records)
    server = experiment.strategy.begin()
    experiment.strategy.load(server, trains=True)
    everyone = experiment.participants
    cohort = everyone[:_CLIENTS] if trains_in_one_pass(experiment, len(everyone)) else everyone[:1]
    rows, strategy = experiment.strategy.start(server, [p.client_id for p in cohort]), experiment.strategy
    if not isinstance(strategy, LALoRA):
        return probe_sensitivity(experiment.engine, cohort, rows, records)
    found = []
    for factor in strategy.turns:  # each is a step of its own, beside another factor that is not zero
        strategy.layout.scatter(moved_by_noise(experiment.engine, cohort, rows)[0])
        experiment.adapters.train_factors(factor)
        found.append(probe_sensitivity(experiment.engine, cohort, rows[:, strategy.columns(factor)], records))
        experiment.adapters.train_factors(strategy.trained)
    return dataclasses.replace(found[0], moves=tuple(move for each in found for move in each.moves))


def _probe_clients(experiment: Experiment, records: int) -> Sensitivity:
    """Leaves one client after another out of a round of all of them."""
    level, engine, everyone = experiment.client_level, experiment.engine, experiment.participants
    if level is None:
        raise ValueError("clients are protected by client-level privacy alone: set privacy.unit to client")
    sizes = np.array([len(p.samples) for p in everyone])
    rows, limit, found = np.arange(len(everyone)), level.limit, []
    sound, engine.noise = engine.noise, secret_noise()
    try:
        for setting in ("start", "clipped"):
            if setting == "clipped":
                limit = tight_norm(_updates(experiment, rows).double().norm(dim=1))
            chosen = with_random(extremes(rows, sizes, None), rows, records)
            found += moves(_clipped_sum(experiment, limit), rows, chosen, setting)
    finally:
        engine.noise = sound
    return Sensitivity(tuple(found), limit_of(engine.model, engine.device), unit="client")


def _clipped_sum(experiment: Experiment, limit: float) -> Callable[[np.ndarray], Tensor]:
    mode = "flat" if experiment.client_level is None else experiment.client_level.clipping
    return lambda rows: clip_updates(_updates(experiment, rows), limit, mode=mode)[0] / limit


def _updates(experiment: Experiment, rows: np.ndarray) -> Tensor:
    """What these clients' local training in the first round amounts to, float32 ``[len(rows),P]``."""
    server = experiment.strategy.begin()
    experiment.strategy.load(server, trains=True)
    clients = [dataclasses.replace(experiment.participants[i]) for i in rows]
    steps = experiment.config.federation.local_steps
    cohort = Cohort(clients, [steps] * len(clients), [True] * len(clients))
    start = experiment.strategy.start(server, cohort.ids)
    trained = start.clone()
    train_cohort(experiment, server, cohort, trained)
    return start - trained
