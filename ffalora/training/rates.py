"""Learning rates that mean the same for every clipping norm, rank, scale and initialisation, and one from noise alone.

Units. With ``s`` the scale of an adapter and ``κ`` the root mean square length of the rows of ``a``, the product is
``s·b·a = (s·κ·b)(a/κ)``. Private steps are divided by the clipping norm (``LogicalStep``), so that a step has at most
length 1 before noise; ``b`` is then moved by ``1/(s·κ)`` of it, and ``s·κ·b``, which alone matters, by the whole of it.
A trained ``a`` moves in units of κ, a core in units of both factors, and what other adapters train by one over the
length of the weight change that a number of it stands for. Plain gradients (SGD where samples are not clipped) are in
those units themselves, so that each unit counts twice. With orthonormal rows and ``alpha = rank`` all units are 1. What
is clipped together is compared in length as it is: ``s·κ`` still decides how much of a clipped sample is the adapters'
share beside a trained head.

The rates. Client k's step carries noise of ``σ_k/B_k`` in each number, in normalised units; averaged with weights w_k,
``V = Σ w_k²σ_k²/B_k²``. The mean of T steps has noise of length ``√(V·D/T)`` in D numbers; with r its ratio to the
length of what data say, all noise together may move each number of a linear head on features of length 1 by
``1/(1+r²)``, and adapters go a path (the sum of all steps' rates) of at most ``PATH/(1+r²)``. All of it is public. The
constants were chosen on movie reviews and tweets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..adapters import Adapters
from ..adapters.variants.base import Variant, rms_length
from ..config import ConfigError, OptimizerConfig
from ..privacy.accounting import PrivacyLedger
from .participant import Participant

#: Length of the mean of normalised steps towards what data say of sentences: in a head, in adapters.
SIGNAL, ADAPTERS_SIGNAL = 0.1, 0.05
#: The same of the adapters of a language model: no head takes a share of C, and what answers ask for points one way.
LANGUAGE_SIGNAL = 0.3
#: Farthest that all steps together may carry an adapter: beyond, training diverges.
PATH = 30.0
#: A head's rate relative to the adapters' where no noise tells.
HEAD_FACTOR = 10.0


def noise_variance(ledgers: Sequence[PrivacyLedger], weights: Sequence[float]) -> float:
    """``V``: the variance of the noise in each number of an averaged step, in units of the clipping norm.

    Args:
        ledgers: one a client; weights: of the average, summing to 1.
    """
    return sum(
        (float(w) * _lasting_noise(one) / one.expected_batch) ** 2 for w, one in zip(weights, ledgers, strict=True)
    )


def _lasting_noise(ledger: PrivacyLedger) -> float:
    """σ; of correlated noise, that of independent noise which is as large in the sum of several steps."""
    correlation = ledger.correlation
    return ledger.noise_multiplier * (1.0 if correlation is None else correlation.relative_noise())


def head_rate(variance: float, width: int, factors: Sequence[float]) -> float:
    """The rate of a linear head on features of length 1 that noise of ``variance`` (positive) allows.

    Args:
        width: D, of the features; factors: what the schedule multiplies each step's rate with.
    """
    ratio = math.sqrt(variance * width / len(factors)) / SIGNAL
    return 1.0 / (1.0 + ratio**2) / math.sqrt(variance * sum(factor**2 for factor in factors))


def auto_rates(
    optimizer: OptimizerConfig,
    variance: float | None,
    width: int,
    length: float,
    numbers: int,
    factors: Sequence[float],
) -> tuple[float, float]:
    """``optimizer.lr: auto`` for adapters and for a trained head: in normalised units for private steps, of plain
    gradients where nothing is clipped.

    Args:
        variance: of an averaged step's noise; None where nothing is clipped.
        width, length: of the features that the head reads.
        numbers: trained numbers, outside the head. factors: of the schedule, one a step.
    """
    factor = HEAD_FACTOR if optimizer.head_lr_factor == "auto" else optimizer.head_lr_factor
    farthest = PATH / max(sum(factors), 3.0)
    if optimizer.name == "adamw":  # every number moves by about the rate, whatever its gradient
        path = math.sqrt(sum(step**2 for step in factors))
        signal = 1.0 if not variance else head_rate(variance, width, factors) * math.sqrt(variance) * path
        lr = min(signal / path / length / factor, farthest / math.sqrt(max(numbers, 1)))
    elif variance is None:  # below twice the inverse curvature of the logistic loss in the head
        lr = min(farthest, 4.0 / length**2 / factor)
    else:
        ratio = math.sqrt(variance * numbers / len(factors)) / ADAPTERS_SIGNAL
        lr = farthest / (1.0 + ratio**2)
    if optimizer.name == "sgd" and variance and optimizer.head_lr_factor == "auto":
        return lr, head_rate(variance, width, factors) / length
    return lr, lr * factor


def language_rate(optimizer: OptimizerConfig, variance: float | None, numbers: int, factors: Sequence[float]) -> float:
    """``optimizer.lr: auto`` for a language model whose adapters alone are trained, in the units of :func:`auto_rates`.

    It counts on samples that are as long as C lets them be: ``privacy.clipping: automatic`` makes them so.

    Args:
        variance, numbers, factors: as there.
    """
    ratio = math.sqrt((variance or 0.0) * numbers / len(factors)) / LANGUAGE_SIGNAL
    lr = PATH / max(sum(factors), 3.0) / (1.0 + ratio**2)
    return lr / math.sqrt(max(numbers, 1)) if optimizer.name == "adamw" else lr


def column_units(
    adapters: Adapters,
    optimizer: OptimizerConfig,
    cohort: Sequence[Participant],
    clipped: bool,
    whitened: int | None = None,
) -> Tensor:
    """What each participant's rate is multiplied with in each column of the state, float64 ``[C,P]``: the factors of
    ``optimizer``, and under ``optimizer.normalize`` the units.

    Args:
        clipped: whether samples are clipped, and steps divided by the clipping norm.
        whitened: where not None, steps are in coordinates of the product, of which all have the unit of ``b``.
    """
    units = torch.ones(len(cohort), adapters.layout.width, dtype=torch.float64)
    power = (1 if clipped or optimizer.name == "adamw" else 2) if optimizer.normalize else 0
    for place in adapters.layout.places:
        columns = units[:, place.columns]
        if place.layer in adapters.heads:
            columns *= torch.tensor([_head_factor(optimizer, each) for each in cohort])[:, None]
            continue
        if power:
            columns *= _unit(adapters, place.layer, place.tensor if whitened is None else "lora_B") ** power
        if place.tensor == "lora_A":
            columns *= optimizer.a_lr_factor
    return units


def given_rate(optimizer: OptimizerConfig) -> float:
    """The rate that the configuration gives.

    Raises:
        ConfigError: it is ``auto``, which only a run with clients and ledgers can decide.
    """
    if optimizer.lr == "auto":
        raise ConfigError("optimizer.lr='auto' is decided for a run's clients; give a number here")
    return optimizer.lr


def _head_factor(optimizer: OptimizerConfig, participant: Participant) -> float:
    if participant.head_lr is not None:
        return participant.head_lr / (given_rate(optimizer) if participant.lr is None else participant.lr)
    if optimizer.head_lr_factor == "auto":
        return HEAD_FACTOR if optimizer.normalize else 1.0
    return optimizer.head_lr_factor


def _unit(adapters: Adapters, name: str, tensor: str) -> float:
    layer = adapters.layers[name]
    if isinstance(layer, Variant):
        return 1.0 / (layer.scale * layer.gain)
    if tensor not in ("lora_A", "lora_B", "lora_core"):
        return 1.0
    rows = rms_length(layer.lora_A)
    if tensor == "lora_A":
        return rows
    size = layer.scale * rows
    return 1.0 / (size if tensor == "lora_B" else size * rms_length(layer.lora_B.T))
