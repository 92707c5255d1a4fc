"""Training at one site: a federation of one client in one round, private or not."""

from __future__ import annotations

from pathlib import Path

from .config import Config, from_mapping, merge
from .federated.simulate import RunResult, simulate


def alone(config: Config) -> Config:
    """``config`` for one client that holds all the training data."""
    clients = {"count": 1, "partition": "iid", "proportions": None, "quantities": None, "column": None}
    return from_mapping(merge(config.model_dump(mode="json"), {"clients": clients}))


def train(config: Config, folder: Path, resume: bool = False, progress: bool = True) -> RunResult:
    """Trains one adapter on all the training data; see ``simulate`` for the folder, resuming and errors.

    The rounds of the configuration are kept as intervals between evaluations and checkpoints: a client alone is
    unchanged by averaging, so ``rounds × local_steps`` logical steps are taken.
    """
    return simulate(alone(config), folder, resume, progress)
