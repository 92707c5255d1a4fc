"""Training at one site: a federation of one client, private or not."""

from __future__ import annotations

from pathlib import Path

from ..config import Config, from_mapping, merge
from .checks import find_strategy
from .simulate import RunResult, simulate

#: What a federation adds to local training, switched off.
_ALONE = {
    "clients": {"count": 1, "partition": "iid", "proportions": None, "quantities": None, "column": None, "ranks": None},
    "federation": {
        "participation": 1.0,
        "prox_mu": 0.0,
        "server_optimizer": "fedavg",
        "server_lr": 1.0,
        "dropout_rate": 0.0,
        "straggler_rate": 0.0,
        "min_available": 1,
        "robust_mean": None,
        "norm_bound": None,
        "hostile_clients": 0,
        "payload": "float32",
    },
}


def alone(config: Config) -> Config:
    """``config`` for one client that holds all the training data; its moments outlive rounds where the method leaves
    the columns their meaning. Noise is secure unless the configuration asks for a seed: the model may leave.
    """
    values = merge(config.model_dump(mode="json"), _ALONE)
    values["optimizer"]["keep_moments"] = find_strategy(config.federation.strategy).steady
    return from_mapping(values).with_noise("secure")


def train(config: Config, folder: str | Path, resume: bool = False, progress: bool = True) -> RunResult:
    """Trains one adapter on all the training data; see ``simulate`` for the folder, resuming and errors.

    The rounds of the configuration are kept as intervals between evaluations and checkpoints: a client alone is
    unchanged by averaging, so ``rounds × local_steps`` logical steps in a row are taken.
    """
    return simulate(alone(config), folder, resume, progress)
