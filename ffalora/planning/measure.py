"""What a sample costs on this machine: a step of the run's own, timed and forgotten."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..federated.experiment import Experiment
from ..training.drawn import drawn_units

_SAMPLES = 64


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
    """Times one logical step on about 64 samples of the first client, after one to warm up."""
    client = experiment.participants[0]
    samples = np.asarray(client.samples)[:_SAMPLES]
    ledger = client.ledger
    drawn = drawn_units(experiment.engine.privacy, experiment.engine.owners).count(samples)
    if ledger is not None:
        ledger = replace(ledger, dataset_size=drawn, sample_rate=1.0, max_steps=2, target_epsilon=None, steps_taken=0)
    state = experiment.adapters.state()[None].clone()
    trained = replace(client, samples=samples, ledger=ledger, adaptive=None, steps_taken=0)
    experiment.engine.train([trained], state, 1)
    _finish(experiment.engine.device)
    started = time.perf_counter()
    experiment.engine.train([trained], state, 1)
    _finish(experiment.engine.device)
    return Cost((time.perf_counter() - started) / len(samples), peak_bytes(experiment.engine.device))


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """The most that this process (on a GPU: the device) has held; 0 where the system does not count."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows has no such count
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
