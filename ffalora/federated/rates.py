"""``optimizer.lr: auto`` for the clients of a run, from what is public about them."""

from __future__ import annotations

from collections.abc import Sequence

from ..adapters import Adapters
from ..config import Config, ConfigError
from ..models import LoadedModel, MeanPooledClassifier
from ..privacy.accounting import PrivacyLedger
from ..training.optim import lr_factor
from ..training.participant import Participant
from ..training.rates import auto_rates, language_rate, noise_variance


def set_rates(
    config: Config, loaded: LoadedModel, adapters: Adapters, participants: Sequence[Participant], clients: int
) -> None:
    """Gives every participant the rates of the run: the configuration's, or those that the noise of all allows.

    Args:
        participants: all clients, or those that are here; the others are taken to be like them.
        clients: number of clients of the run.

    Raises:
        ConfigError: an automatic rate in the paper's units.
    """
    if config.optimizer.lr == "auto" and not config.optimizer.normalize:
        raise ConfigError(
            "optimizer.lr='auto' is a rate of normalised steps, and optimizer.normalize=false; give lr a number, or "
            "leave normalize out"
        )
    ledgers = [p.ledger for p in participants if p.ledger is not None]
    optimizer, variance = config.optimizer, variance_of(config, ledgers, clients)
    steps = config.federation.steps
    lr, head_lr = rates_of(config, loaded, adapters, variance, steps)
    for participant in participants:
        participant.lr = lr if optimizer.lr == "auto" else optimizer.lr
        participant.head_lr = head_lr if optimizer.lr == optimizer.head_lr_factor == "auto" else None


def rates_of(
    config: Config, loaded: LoadedModel, adapters: Adapters, variance: float | None, steps: int
) -> tuple[float, float]:
    """The ``auto`` rates, of adapters and of a trained head, of a run of ``steps`` steps whose averaged steps carry
    noise of ``variance`` (None: nothing is clipped).
    """
    width = feature_width(loaded)
    length = config.model.head_scale if isinstance(loaded.model, MeanPooledClassifier) else width**0.5
    factors = [lr_factor(config.optimizer, step, steps) for step in range(steps)]
    numbers = sum(place.size for place in adapters.layout.places if place.layer not in adapters.heads)
    if config.data.task == "causal-lm" and not adapters.heads:
        lr = language_rate(config.optimizer, variance, numbers, factors)
        return lr, lr
    return auto_rates(config.optimizer, variance, width, length, numbers, factors)


def feature_width(loaded: LoadedModel) -> int:
    """How many numbers the head reads of a sample."""
    model = loaded.model
    return (
        model.center.numel() if isinstance(model, MeanPooledClassifier) else getattr(model.config, "hidden_size", 768)
    )


def variance_of(config: Config, ledgers: Sequence[PrivacyLedger], clients: int) -> float | None:
    """The variance of the noise in a coordinate of the clients' averaged step, in units of C²; None without privacy.

    Args:
        ledgers: of all clients, or of those that are here; clients: number of clients of the run.
    """
    if not ledgers:
        return None
    by_size = config.federation.weighting == "size"
    sizes = [ledger.dataset_size if by_size else 1 for ledger in ledgers]
    own = noise_variance(ledgers, [size / sum(sizes) for size in sizes])
    return own * len(ledgers) / clients / config.federation.participation
