"""What the server makes of the average: FedAvgM (Hsu et al. 2019) and the adaptive methods of Reddi et al., ICLR 2021.

The difference between the average and where the cohort started is taken for a negative gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import FederationConfig

#: Begins the names of tensors that mean nothing once the columns of the row mean something else.
OF_THE_SERVER = "server."


def server_step(
    tensors: dict[str, Tensor], start: Tensor, mean: Tensor, federation: FederationConfig, factor: str
) -> Tensor:
    """The next global row, from where the cohort started and the average of where it ended.

    With ``Δ = mean - start`` (Reddi et al., Algorithm 2; no bias correction, second moment begins at τ²)::

        fedavg      start + lr·Δ
        fedavgm     m ← β₁m + Δ;                start + lr·m
        adaptive    m ← β₁m + (1-β₁)Δ;          start + lr·m/(√v + τ)
        fedadagrad  v ← v + Δ²
        fedadam     v ← β₂v + (1-β₂)Δ²
        fedyogi     v ← v - (1-β₂)Δ²·sign(v - Δ²)

    Args:
        tensors: the server's; its moments are kept there under names of ``factor``, in float64.
        start, mean: float32 ``[P]``.
        federation: optimiser and its numbers.
        factor: what is trained in this round; each factor has moments of its own.
    """
    name, lr = federation.server_optimizer, federation.server_lr
    delta = mean.double() - start.double()
    if name == "fedavg":
        return (start.double() + lr * delta).float()
    beta1, beta2, tau = federation.server_beta1, federation.server_beta2, federation.server_tau
    first, second = f"{OF_THE_SERVER}m.{factor}", f"{OF_THE_SERVER}v.{factor}"
    m = beta1 * tensors.get(first, torch.zeros_like(delta)).to(delta.device) + (
        delta if name == "fedavgm" else (1 - beta1) * delta
    )
    tensors[first] = m
    if name == "fedavgm":
        return (start.double() + lr * m).float()
    square = delta.square()
    v = tensors.get(second, torch.full_like(delta, tau**2)).to(delta.device)
    if name == "fedadagrad":
        v = v + square
    elif name == "fedadam":
        v = beta2 * v + (1 - beta2) * square
    else:
        v = v - (1 - beta2) * square * torch.sign(v - square)
    tensors[second] = v
    return (start.double() + lr * m / (v.sqrt() + tau)).float()


def forget_moments(tensors: dict[str, Tensor]) -> None:
    """Drops the server's moments and average over rounds, where the columns they belong to have got another meaning."""
    for name in [name for name in tensors if name.startswith(OF_THE_SERVER)]:
        del tensors[name]
