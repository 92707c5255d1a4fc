"""Nearest class mean from one noisy release of each client: sums of features and counts, all samples at once.

A sample adds ``f·φ`` to the sum of its class and 1 to its count, where ``f = min(1, 1/‖φ‖)``. Counts are released in
units of ``1/w``, so that together one sample moves what leaves the client by at most ``√(1 + w²)``: one Gaussian
mechanism at q = 1 (add/remove adjacency; zero-out where the number of samples is public). What the server makes of the
noisy sums is post-processing.

The server shrinks each class's mean, relative to the mean of all classes, towards a public guess where noise drowns
it: with ``d_k`` the noisy deviation, ``v_k`` the variance of its noise and the prior ``d_k ~ (p_k, spread²)``,
``E[d_k] = (spread²·d_k + v_k·p_k)/(spread² + v_k)``. The guess is a fraction of the deviations of the classes' texts
(see ``prototypes``); without texts it is 0. Sources: Snell et al., NeurIPS 2017 (class means on frozen features);
Morris, JASA 1983 (parametric empirical Bayes); the sensitivity is derived above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..privacy.accounting import PrivacyLedger
from ..privacy.clipping import sensitivity
from ..privacy.noise import NoiseSource
from .clients import ClientFeatures, check_clients
from .linear import LinearClassifier
from .noisy_sum import noisy_sum

#: w: counts carry noise of 1/w times that of a feature, relative to their sensitivity; small w favours the features.
COUNT_WEIGHT = 0.5
#: Prior of class means: length of their deviations from each other, length of the mean of all classes, and what
#: deviations of class texts are multiplied with to guess theirs.
SPREAD, CENTRE, TEXT_SHARE = 0.075, 0.45, 0.12
_NORM_MARGIN = 1.0 + 2.0**-20


@dataclass(frozen=True)
class ReleasedSums:
    """What leaves a client.

    Attributes:
        sums: float64 ``[L,D]``, noisy sums of clipped features a class.
        counts: float64 ``[L]``, noisy numbers of samples a class.
        std: standard deviation of the noise on each number of ``sums``; on counts it is ``std/w``.
    """

    sums: Tensor
    counts: Tensor
    std: float


@dataclass(frozen=True)
class ClassMeans:
    """Class means as the server knows them.

    Attributes:
        centre: float32 ``[D]``, mean of all classes' means.
        deviations: float32 ``[L,D]``, each class's mean less the centre, shrunk.
    """

    centre: Tensor
    deviations: Tensor

    def classifier(self) -> LinearClassifier:
        """The nearest class mean, as a linear classifier: ``‖x - c - d‖² = ‖x - c‖² - 2 d·(x - c - d/2)``."""
        return LinearClassifier(self.deviations, -(self.deviations * (self.centre + self.deviations / 2)).sum(1))


def joint_sensitivity(samples: int) -> float:
    """``√(1 + w²)·(1+η)``: what one sample can change in the computed sums and weighted counts together."""
    return sensitivity((1.0 + COUNT_WEIGHT**2) ** 0.5, samples)


def class_sums(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Exact sums of clipped features and weighted counts of one client, float64 ``[L,D+1]``: private, without noise.

    A row with NaN or Inf contributes exactly zero, to its count as well.
    """
    wide = features.double()
    norms = wide.norm(dim=1)
    factors = (1.0 / (norms * _NORM_MARGIN)).clamp(max=1.0)
    finite = norms.isfinite()
    rows = torch.cat([wide * factors[:, None], torch.full((len(wide), 1), COUNT_WEIGHT, dtype=torch.float64)], 1)
    total = torch.zeros(classes, rows.shape[1], dtype=torch.float64)
    return total.index_add_(0, labels[finite], rows[finite])


def release_sums(client: ClientFeatures, classes: int, ledger: PrivacyLedger, noise: NoiseSource) -> ReleasedSums:
    """One client's noisy sums and counts, charged before they exist.

    Args:
        client: its features and classes.
        classes: L.
        ledger: of its data, at sample rate 1; charged one step (see ``Budget.ledger``).
        noise: where the noise comes from.

    Raises:
        ValueError: a ledger of other data or of subsampled steps.
        PrivacyBudgetSpent: the ledger allows no step.
    """
    check_clients([client], classes)
    if ledger.sample_rate != 1.0 or ledger.dataset_size != len(client) or ledger.unit != "sample":
        raise ValueError(
            f"client {client.client_id}: class means read all {len(client)} samples in one step, but its ledger is for "
            f"{ledger.dataset_size} at sample_rate={ledger.sample_rate} (unit {ledger.unit}); give one of rate 1"
        )
    step = ledger.steps_taken
    ledger.charge(noise=noise.mode)
    total = class_sums(client.features, client.labels, classes)
    std = ledger.noise_multiplier * joint_sensitivity(len(client))
    noisy = noisy_sum(total.view(1, -1), [std], noise, [client.client_id], [step]).view_as(total)
    return ReleasedSums(noisy[:, :-1], noisy[:, -1] / COUNT_WEIGHT, std)


def class_means(released: Sequence[ReleasedSums], directions: Tensor | None = None) -> ClassMeans:
    """The means of all clients' samples, shrunk towards what class texts suggest where noise drowns them.

    Args:
        released: of every client, with the same classes.
        directions: float32 ``[L,D]`` of length 1, from ``prototypes``; None where classes have no texts.

    Raises:
        ValueError: nothing released, or different shapes.
    """
    if not released:
        raise ValueError("released is empty; give the sums of at least one client")
    if len({tuple(r.sums.shape) for r in released}) > 1:
        raise ValueError("the released sums differ in shape; use one encoder and the same classes for all clients")
    sums = torch.stack([r.sums for r in released]).sum(0)
    counts = torch.stack([r.counts for r in released]).sum(0)
    variance = sum(r.std**2 for r in released)  # of each number of the sums
    lowest = max(1.0, sum((r.std / COUNT_WEIGHT) ** 2 for r in released) ** 0.5)
    counts = counts.clamp(min=lowest)
    classes, width = sums.shape
    means = sums / counts[:, None]
    of_means = variance * width / counts.square()  # variance of each mean's noise, all D numbers together
    of_centre = of_means.sum() / classes**2
    of_deviations = (1 - 2 / classes) * of_means + of_centre
    spread, size = SPREAD**2, CENTRE**2
    centre = means.mean(0)
    guess = torch.zeros_like(means)
    if directions is not None:
        guess = TEXT_SHARE * (directions - directions.mean(0)).double()
    noisy = of_deviations[:, None]
    deviations = (spread * (means - centre) + noisy * guess) / (spread + noisy)
    deviations = deviations - deviations.mean(0)
    return ClassMeans((centre * size / (size + of_centre)).float(), deviations.float())
