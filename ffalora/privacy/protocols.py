"""ε and noise at a glance: the table of ``ffalora epsilon``, and the published protocols it can be asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ..files.numbers import decimals_up, rounded_up
from .accountants import ACCOUNTANTS, epsilon, epsilon_of, noise_multiplier_for
from .spent import Spent


@dataclass(frozen=True)
class Protocol:
    """Sample-level DP-SGD at each of several clients, all of one size.

    Attributes:
        dataset_size: records of one client.
        batch_size: expected batch.
        steps: of all rounds together.
        delta: δ.
        source: where the numbers come from.
        calibrated_steps: those that its released code calibrates σ for, where a client may take more.
    """

    dataset_size: int
    batch_size: int
    steps: int
    delta: float
    source: str
    calibrated_steps: int | None = None

    @property
    def sample_rate(self) -> float:
        """q."""
        return self.batch_size / self.dataset_size

    def describe(self) -> str:
        """Its sizes in a line, and which steps σ is for where these are not all."""
        text = f"{self.dataset_size} samples a client, batch {self.batch_size} ({self.source})"
        if self.calibrated_steps is None:
            return text
        return (
            f"{text}. From a target ε, σ is what its released code takes: for {self.calibrated_steps} steps, as many "
            f"as a client takes on average; ε is of a client that is drawn in every round and takes {self.steps}"
        )


_FFA = "Sun, Li, Li, Ding, ICLR 2024: RoBERTa-large, 3 clients, batch 200, 1000 rounds of 10 steps"
_TRAINING_SETS = {"mnli": 392_702, "sst2": 67_349, "qqp": 363_846, "qnli": 104_743}
_FEDSVD = "FedSVD, NeurIPS 2025: RoBERTa-large, SST-2, 6 clients, 3 a round, batch 128, 100 rounds of 10 steps"
#: Published protocols by name. The data of GLUE's training sets is split evenly over the clients.
PROTOCOLS = {
    f"ffa-lora/{task}": Protocol(size // 3, 200, 10_000, 1e-5, _FFA) for task, size in _TRAINING_SETS.items()
} | {"fedsvd": Protocol(_TRAINING_SETS["sst2"] // 6, 128, 1000, 1e-5, _FEDSVD, calibrated_steps=500)}


@dataclass(frozen=True)
class EpsilonRow:
    """One line of the table: an accountant's answer for one setting."""

    accountant: str
    noise_multiplier: float
    epsilon: float
    sample_rate: float
    steps: int
    delta: float
    sampling: str


def epsilon_table(
    dataset_size: int,
    batch_size: float,
    steps: int,
    delta: float,
    noise_multiplier: float | None = None,
    target_epsilon: float | None = None,
    sampling: str = "poisson",
    calibrated_steps: int | None = None,
) -> list[EpsilonRow]:
    """All three accountants side by side: ε from σ, or σ from a target ε.

    Args:
        dataset_size: records of the client.
        batch_size: expected batch; the sampling rate is batch_size / dataset_size.
        steps: of all rounds together.
        delta: δ.
        noise_multiplier: σ; give this or ``target_epsilon``.
        target_epsilon: calibrates σ separately for each accountant.
        sampling: see :func:`~ffalora.privacy.accountants.epsilon`.
        calibrated_steps: σ spends the target in so many steps instead of in all; ε is of all.

    Raises:
        ValueError: both or neither of σ and the target, or a value out of range.
    """
    if (noise_multiplier is None) == (target_epsilon is None):
        raise ValueError(
            "give either noise_multiplier or target_epsilon, "
            f"got noise_multiplier={noise_multiplier} and target_epsilon={target_epsilon}"
        )
    if dataset_size < 1 or not 0 < batch_size <= dataset_size:
        raise ValueError(f"batch_size must lie in (0, dataset_size={dataset_size}], got {batch_size}")
    rate = batch_size / dataset_size
    rows = []
    for accountant in ACCOUNTANTS:
        if target_epsilon is not None:
            sigma = noise_multiplier_for(target_epsilon, delta, rate, calibrated_steps or steps, accountant, sampling)
        else:
            sigma = float(noise_multiplier or 0.0)
        spent = epsilon(sigma, rate, steps, delta, accountant, sampling)
        rows.append(EpsilonRow(accountant, sigma, spent, rate, steps, delta, sampling))
    return rows


class ChoicePrice(NamedTuple):
    """What it costs to choose the best of several runs.

    Attributes:
        trials: runs, on average where their number is drawn; noise_multiplier: σ of each.
        chosen: ε of a random number of runs of which only the best is shown; swept: of showing as many, rounded up.
    """

    trials: float
    noise_multiplier: float
    chosen: float
    swept: float

    def __str__(self) -> str:
        return (
            f"σ = {decimals_up(self.noise_multiplier, 5)}: the best of a random number of runs, {self.trials:g} on "
            f"average, drawn in secret: ε = {self.chosen:.4g}; a sweep of {math.ceil(self.trials)}: "
            f"ε = {self.swept:.4g} (by Rényi moments)"
        )


def price_of_choice(row: EpsilonRow, trials: float) -> ChoicePrice:
    """What it costs to choose among ``trials`` runs of the row's σ, on average, in private, and in a sweep of as many.

    Raises:
        ValueError: a number of trials that is not finite, or below 1.
    """
    one = Spent(row.noise_multiplier, row.sample_rate, row.steps, row.sampling)
    chosen = epsilon_of([one.chosen(trials)], row.delta, "rdp")
    swept = epsilon_of([one._replace(steps=math.ceil(trials) * row.steps)], row.delta, "rdp")
    return ChoicePrice(trials, row.noise_multiplier, rounded_up(chosen), rounded_up(swept))


def format_table(rows: list[EpsilonRow]) -> str:
    """The rows as aligned text; σ and ε are rounded up: who takes the σ shown spends at most the ε shown."""
    lines = ["accountant         σ         ε   sample rate     steps         δ   sampling"]
    lines += [
        f"{r.accountant:<10} {decimals_up(r.noise_multiplier, 5):>9} {decimals_up(r.epsilon):>9} "
        f"{r.sample_rate:>13.6f} {r.steps:>9} {r.delta:>9.1e}   {r.sampling}"
        for r in rows
    ]
    return "\n".join(lines)
