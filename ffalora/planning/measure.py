"""What training costs on this machine: steps of the run's own clients, timed and forgotten."""

from __future__ import annotations

import copy
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..federated.experiment import Experiment
from ..privacy.accounts import Accounts
from ..training.drawn import count_drawn
from ..training.participant import Participant

_SAMPLES, _FEWER, _STEPS, _EVALUATED, _REPEATS, _ENOUGH = 64, 8, 2, 128, 3, 5.0


@dataclass(frozen=True)
class Cost:
    """What was measured.

    Attributes:
        seconds_per_step: that a client's private step takes whatever its batch is: noise, the optimiser, the first
            pass. seconds_per_sample: that each sample adds: forward, backward, clipping.
        seconds_per_evaluation: of the global model on the split that the run evaluates.
        peak_bytes: the most memory that the process (on a GPU: the device) held.
    """

    seconds_per_step: float
    seconds_per_sample: float
    seconds_per_evaluation: float
    peak_bytes: int


def measure(experiment: Experiment) -> Cost:
    """Times logical steps of the first client: on as many samples as a full physical batch takes, at least 64, and on
    an eighth of them; and an evaluation.
    """
    client, lengths = experiment.participants[0], experiment.config.data.views * experiment.train.lengths
    full = math.ceil((experiment.engine.token_budget or 1) / max(1.0, float(lengths[client.samples].mean())))
    many = min(len(client.samples), max(_SAMPLES, full))
    few = max(1, many // _FEWER)
    short, long = (seconds_of(_steps_of(experiment, count), experiment.engine.device) / _STEPS for count in (few, many))
    sample = (long - short) / (many - few) if long > short and many > few else long / many
    evaluation = evaluation_seconds(experiment)
    return Cost(max(0.0, long - many * sample), sample, evaluation, peak_bytes(experiment.engine.device))


def evaluation_seconds(experiment: Experiment) -> float:
    """Of one evaluation: of its first 128 rows, continued to all."""
    data, rows = experiment.config.data, len(experiment.evaluation)
    wanted = min(rows, data.max_evaluation_samples or rows)
    few = min(wanted, _EVALUATED)
    if not few:
        return 0.0
    fewer = experiment.config.model_copy(update={"data": data.model_copy(update={"max_evaluation_samples": few})})
    return seconds_of(replace(experiment, config=fewer).evaluate, experiment.engine.device) * wanted / few


def unlimited(client: Participant) -> Participant:
    """A copy of a client whose budget no measurement exhausts; correlated noise is for the steps of the run alone."""
    ledger = client.ledger
    if ledger is not None:
        most = 10**6 if ledger.correlation is None else ledger.max_steps
        ledger = replace(ledger, max_steps=most, target_epsilon=None, steps_taken=0)
    return replace(client, ledger=ledger, adaptive=copy.deepcopy(client.adaptive), steps_taken=0)


@contextmanager
def charged_elsewhere(experiment: Experiment) -> Iterator[None]:
    """Steps are charged in a folder that is thrown away, durably where those of the run would be."""
    engine, privacy = experiment.engine, experiment.config.privacy
    before = engine.charged, experiment.charged
    with tempfile.TemporaryDirectory() as place:
        if privacy.is_secure and privacy.at_clients:
            experiment.on_charge(Accounts(Path(place)).charge)
        try:
            yield
        finally:
            engine.charged, experiment.charged = before


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Of one call, the least of three after one to warm up, fewer where they take more than five seconds: what other
    work adds is none of its own.
    """
    found: list[float] = []
    while len(found) < 2 or (len(found) <= _REPEATS and sum(found[1:]) < _ENOUGH):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - started)
    return min(found[1:])


def peak_bytes(device: torch.device) -> int:
    """The most that this process (on a GPU: the device) has held; 0 where the system does not count."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows has no such count
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _steps_of(experiment: Experiment, count: int) -> Callable[[], None]:
    """Steps of the first client on ``count`` samples, from a copy of all that they change."""
    engine, client = experiment.engine, experiment.participants[0]
    samples = np.asarray(client.samples)[:count]
    drawn = count_drawn(engine.privacy, engine.owners, samples)

    def train() -> None:
        one = unlimited(client)
        ledger = one.ledger and replace(one.ledger, dataset_size=drawn, sample_rate=1.0)
        with charged_elsewhere(experiment):
            state = experiment.adapters.state()[None].clone()
            engine.train([replace(one, samples=samples, ledger=ledger, adaptive=None)], state, _STEPS)

    return train
