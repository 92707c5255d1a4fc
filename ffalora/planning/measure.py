"""What training costs on this machine: steps of the run's own clients, timed and forgotten."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..federated.experiment import Experiment
from ..training.drawn import drawn_units
from ..training.participant import Participant

_SAMPLES, _REPEATS = 64, 3


@dataclass(frozen=True)
class Cost:
    """What was measured.

    Attributes:
        seconds_per_sample: of a private step: forward, backward, clipping, noise.
        peak_bytes: the most memory that the process (on a GPU: the device) held.
    """

    seconds_per_sample: float
    peak_bytes: int


def measure(experiment: Experiment) -> Cost:
    """Times one logical step on about 64 samples of the first client."""
    engine, client = experiment.engine, unlimited(experiment.participants[0])
    samples, ledger = np.asarray(client.samples)[:_SAMPLES], client.ledger
    if ledger is not None:
        drawn = drawn_units(engine.privacy, engine.owners).count(samples)
        ledger = replace(ledger, dataset_size=drawn, sample_rate=1.0)
    client = replace(client, samples=samples, ledger=ledger, adaptive=None)
    state = experiment.adapters.state()[None].clone()
    seconds = seconds_of(lambda: engine.train([client], state, 1), engine.device)
    return Cost(seconds / len(samples), peak_bytes(engine.device))


def unlimited(client: Participant) -> Participant:
    """A copy of a client whose budget no measurement exhausts."""
    ledger = client.ledger
    if ledger is not None:
        ledger = replace(ledger, max_steps=10**6, target_epsilon=None, steps_taken=0)
    return replace(client, ledger=ledger, adaptive=copy.deepcopy(client.adaptive), steps_taken=0)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Of one call, the least of three after one to warm up: what other work adds is none of its own."""
    found = []
    for _ in range(_REPEATS + 1):
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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
