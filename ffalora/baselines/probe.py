"""A linear layer on frozen features: trained by federated DP-SGD, or by logistic regression without privacy.

The private probe takes the same clients, ε, rounds and batch as the run beside it, and the same mechanism: Poisson
samples, one clipped gradient a sample, noise, division by the expected batch (Abadi et al., CCS 2016), averages by
data-set size (McMahan et al., AISTATS 2017). Steps are clip-normalised: the noisy mean is divided by C. The rate
follows from the noise alone (:func:`rate_of`): large where there is little of it, and next to nothing where it would
only carry a good start away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ffalora_kernels import clip_reduce_

from ..privacy.accounting import PrivacyLedger
from ..privacy.clipping import sensitivity
from ..privacy.noise import NoiseSource
from ..privacy.sampling import Draw
from ..training.rates import head_rate, noise_variance
from .clients import ClientFeatures, check_clients
from .linear import LinearClassifier
from .noisy_sum import noisy_sum

#: C for features of length 1: a sample of two classes is clipped unless its class has a probability above 0.8.
_CLIP = 0.3
#: The constant feature of the bias: small, since label skew makes the bias of each client a poor guess of all clients'.
_BIAS_FEATURE = 0.1
#: scikit-learn's C of the probe without privacy, for features of length 1.
_INVERSE_PENALTY = 10.0
#: Most numbers of gradients held at once: 64 MiB.
_NUMBERS = 2**24


@dataclass(frozen=True)
class ProbePlan:
    """How a probe is trained.

    Attributes:
        rounds, local_steps: their product is the number of steps of each client.
    """

    rounds: int
    local_steps: int

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.local_steps < 1:
            raise ValueError(f"rounds and local_steps must be positive, got {self}")

    @property
    def steps(self) -> int:
        """Steps of each client in all rounds."""
        return self.rounds * self.local_steps

    def factor(self, step: int) -> float:
        """What the rate is multiplied with at ``step`` from 0: half a cosine."""
        return 0.5 * (1.0 + math.cos(math.pi * step / self.steps))


def rate_of(plan: ProbePlan, ledgers: Sequence[PrivacyLedger], weights: Tensor, width: int) -> float:
    """The rate at which the noise of all steps moves each averaged number as far as the data are worth: see
    ``training.rates``.
    """
    variance = noise_variance(ledgers, weights.tolist())
    if variance == 0:
        raise ValueError("noise_multiplier=0 protects nothing and sets no rate; plain_probe is the one without privacy")
    return head_rate(variance, width, [plan.factor(step) for step in range(plan.steps)])


def linear_probe(
    clients: Sequence[ClientFeatures],
    classes: int,
    plan: ProbePlan,
    ledgers: Sequence[PrivacyLedger],
    draw: Draw,
    noise: NoiseSource,
    start: LinearClassifier | None = None,
) -> LinearClassifier:
    """Trains a probe on all clients' samples under differential privacy.

    Args:
        clients: their features and classes.
        classes: L.
        plan: rounds and steps.
        ledgers: one a client, charged each step before anything is computed.
        draw: Poisson samples.
        noise: of the steps; use another seed or key than the run beside it.
        start: from where; None starts at zero. A start from data must have been charged to the same ledgers.

    Returns:
        the probe for features of any length: they are normalised in training only.

    Raises:
        ValueError: ledgers that do not belong to the clients.
        PrivacyBudgetSpent: a ledger does not allow the steps.
    """
    width = check_clients(clients, classes)
    _check_ledgers(clients, ledgers)
    sizes = torch.tensor([len(client) for client in clients], dtype=torch.float64)
    weights = sizes / sizes.sum()
    lr = rate_of(plan, ledgers, weights, width)
    inputs = [_with_constant(client.features) for client in clients]
    state = torch.zeros(classes, width + 1, dtype=torch.float64)
    if start is not None:
        state = torch.cat([start.weight, start.bias[:, None] / _BIAS_FEATURE], 1).double()
    for number in range(plan.rounds):
        rows = state.expand(len(clients), -1, -1).clone()
        for local in range(plan.local_steps):
            gradient = _noisy_means(clients, inputs, rows, ledgers, draw, noise)
            rows -= lr * plan.factor(number * plan.local_steps + local) * gradient
        state = torch.einsum("c,cld->ld", weights, rows)
    return LinearClassifier(state[:, :-1].float(), (state[:, -1] * _BIAS_FEATURE).float())


def plain_probe(clients: Sequence[ClientFeatures], classes: int) -> LinearClassifier:
    """Logistic regression on all clients' samples in one place, without privacy: a bound, for simulations only.

    Raises:
        ValueError: all samples are of one class.
    """
    from sklearn.linear_model import LogisticRegression

    width = check_clients(clients, classes)
    features = torch.cat([F.normalize(client.features, dim=1) for client in clients]).numpy()
    labels = torch.cat([client.labels for client in clients]).numpy()
    fitted = LogisticRegression(C=_INVERSE_PENALTY, max_iter=2000).fit(features, labels)
    weight = torch.zeros(classes, width)
    bias = torch.full((classes,), -torch.inf)  # a class that nobody holds is never predicted
    coefficients, intercepts = torch.from_numpy(fitted.coef_).float(), torch.from_numpy(fitted.intercept_).float()
    if len(fitted.classes_) == 2:  # one row, of the second class against the first
        coefficients, intercepts = (
            torch.cat([-coefficients, coefficients]) / 2,
            torch.cat([-intercepts, intercepts]) / 2,
        )
    weight[fitted.classes_], bias[fitted.classes_] = coefficients, intercepts
    return LinearClassifier(weight, bias)


def _noisy_means(
    clients: Sequence[ClientFeatures],
    inputs: Sequence[Tensor],
    rows: Tensor,
    ledgers: Sequence[PrivacyLedger],
    draw: Draw,
    noise: NoiseSource,
) -> Tensor:
    """One step's noisy mean gradient of every client over C, float64 ``[C,L,D+1]``."""
    steps = [ledger.steps_taken for ledger in ledgers]
    for ledger in ledgers:
        ledger.charge(noise=noise.mode)
    count = rows.shape[0]
    total = torch.zeros(count, rows[0].numel(), dtype=torch.float64)
    limit = torch.full((count, 1), _CLIP, dtype=torch.float64)
    columns = torch.tensor([0, total.shape[1]], dtype=torch.int32)
    for row, (client, ledger, step) in enumerate(zip(clients, ledgers, steps, strict=True)):
        drawn = torch.from_numpy(draw(client.client_id, step, len(client), ledger.sample_rate))
        for part in drawn.split(max(1, _NUMBERS // total.shape[1])):
            x, labels = inputs[row][part], client.labels[part]
            residual = (x @ rows[row].float().T).softmax(1) - F.one_hot(labels, rows.shape[1])
            gradients = torch.einsum("sl,sd->sld", residual, x).reshape(len(x), -1)
            clip_reduce_(total, gradients, torch.full((len(x),), row, dtype=torch.int32), limit, columns)
    std = [ledger.noise_multiplier * sensitivity(_CLIP, ledger.dataset_size) for ledger in ledgers]
    noisy = noisy_sum(total, std, noise, [client.client_id for client in clients], steps)
    expected = torch.tensor([ledger.sample_rate * ledger.dataset_size for ledger in ledgers], dtype=torch.float64)
    return (noisy / (_CLIP * expected[:, None])).view_as(rows)


def _with_constant(features: Tensor) -> Tensor:
    """Features of length 1 and the constant of the bias, float32 ``[n,D+1]``."""
    return torch.cat([F.normalize(features, dim=1), torch.full((len(features), 1), _BIAS_FEATURE)], 1)


def _check_ledgers(clients: Sequence[ClientFeatures], ledgers: Sequence[PrivacyLedger]) -> None:
    theirs = [(ledger.client_id, ledger.dataset_size) for ledger in ledgers]
    own = [(client.client_id, len(client)) for client in clients]
    if theirs != own:
        raise ValueError(f"ledgers are for (client, samples) {theirs}, but the clients are {own}; make one for each")
    other = [ledger.client_id for ledger in ledgers if ledger.sampling != "poisson" or ledger.unit != "sample"]
    if other:
        raise ValueError(
            f"the ledgers of clients {other} count another mechanism than Poisson samples; see Budget.ledger"
        )
