"""``optimizer.lr: auto`` for the clients of a run, from what is public about them."""

from __future__ import annotations

from collections.abc import Sequence

from ..adapters import Adapters
from ..config import Config
from ..models import LoadedModel, MeanPooledClassifier
from ..training.optim import lr_factor
from ..training.participant import Participant
from ..training.rates import auto_rate, noise_variance


def set_rates(
    config: Config, loaded: LoadedModel, adapters: Adapters, participants: Sequence[Participant], clients: int
) -> None:
    """Gives every participant the rate of the run: the configuration's, or the one that the noise of all allows.

    Args:
        participants: all clients, or those that are here; the others are taken to be like them.
        clients: number of clients of the run.
    """
    lr = config.optimizer.lr
    if lr == "auto":
        steps = config.federation.rounds * config.federation.local_steps
        lr = rate_of(config, loaded, adapters, _variance(config, participants, clients), steps)
    for participant in participants:
        participant.lr = lr


def rate_of(config: Config, loaded: LoadedModel, adapters: Adapters, variance: float | None, steps: int) -> float:
    """The ``auto`` rate of a run of ``steps`` steps whose averaged steps carry noise of ``variance`` (None: nothing is
    clipped).
    """
    pools = isinstance(loaded.model, MeanPooledClassifier)
    width = loaded.model.center.numel() if pools else getattr(loaded.model.config, "hidden_size", 768)
    length = config.model.head_scale if pools else width**0.5
    factors = [lr_factor(config.optimizer, step, steps) for step in range(steps)]
    return auto_rate(config.optimizer, variance, width, length, adapters.layout.size, factors)


def _variance(config: Config, participants: Sequence[Participant], clients: int) -> float | None:
    ledgers = [p.ledger for p in participants if p.ledger is not None]
    if not ledgers:
        return None
    by_size = config.federation.weighting == "size"
    sizes = [ledger.dataset_size if by_size else 1 for ledger in ledgers]
    own = noise_variance(ledgers, [size / sum(sizes) for size in sizes])
    return own * len(ledgers) / clients / config.federation.participation
