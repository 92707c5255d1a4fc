"""How far the product of the averaged factors is from the average of the products, by layer and in total.

``D = s·(Σ_k w_k b_k a_k - (Σ_k w_k b_k)(Σ_k w_k a_k))``, the discordance of averaging LoRA's factors one by one (Sun et
al., ICLR 2024). It is the weighted covariance of the clients' factors, hence unchanged when one and the
same matrix is taken off every ``b_k`` or every ``a_k``; with an ``a`` that all clients share it is zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...adapters import Adapters
from ...federated.strategies.factors import factors


@dataclass(frozen=True)
class Discordance:
    """Frobenius norms in units of the weights ``[N,K]``.

    Attributes:
        layers: ``‖D‖`` of each adapted layer.
        total: ``√Σ‖D‖²`` over layers.
        update: the norm of the round's exact move, ``√Σ‖s·Σ_k w_k b_k a_k - s·b a‖²`` over layers, from the factors
            ``b``, ``a`` that the clients started from.
    """

    layers: Mapping[str, float]
    total: float
    update: float

    @property
    def relative(self) -> float:
        """``total / update``: the share of the round's move that averaging gets wrong; 0 where nothing moved."""
        return self.total / self.update if self.update else 0.0


def discordance(b: Tensor, a: Tensor, weights: Tensor, scale: float) -> float:
    """``‖D‖_F`` of one layer; exactly 0.0 where all clients have the same ``a`` (or the same ``b``).

    The first client's factors are taken off all others before anything is multiplied. That leaves D as it is (weights
    sum to 1), loses fewer digits, and makes a shared factor's difference exactly zero.

    Args:
        b: ``[C,N,R]``; a: ``[C,R,K]``; one pair a client.
        weights: ``[C]``, summing to 1.
        scale: s.

    Raises:
        ValueError: weights that do not sum to 1.
    """
    _check_weights(weights)
    w = weights.double()
    return scale * float(torch.linalg.matrix_norm(_covariance(b.double(), a.double(), w)))


def round_discordance(adapters: Adapters, start: Tensor, rows: Tensor, weights: Tensor) -> Discordance:
    """The discordance of a round.

    Args:
        adapters: with the round's layout; factors that are not in it are the model's, for every client.
        start: float32 ``[P]``, where the clients started; rows: ``[C,P]``, where they ended.
        weights: ``[C]`` of the aggregation, summing to 1.

    Raises:
        ValueError: weights that do not sum to 1.
    """
    _check_weights(weights)
    w = weights.to(rows.device, torch.float64)
    layers: dict[str, float] = {}
    moved = 0.0
    for name, layer in adapters.layers.items():
        b, a = factors(adapters.layout, name, rows)
        b0, a0 = factors(adapters.layout, name, start[None])
        layers[name] = layer.scale * float(torch.linalg.matrix_norm(_covariance(b, a, w)))
        mean_product = torch.einsum("c,cnr,crk->nk", w, b, a)
        moved += float((layer.scale * (mean_product - b0[0] @ a0[0])).square().sum())
    return Discordance(layers, math.sqrt(sum(d * d for d in layers.values())), math.sqrt(moved))


def _covariance(b: Tensor, a: Tensor, w: Tensor) -> Tensor:
    b, a = b - b[0], a - a[0]
    return torch.einsum("c,cnr,crk->nk", w, b, a) - torch.einsum("c,cnr->nr", w, b) @ torch.einsum("c,crk->rk", w, a)


def _check_weights(weights: Tensor) -> None:
    if abs(float(weights.double().sum()) - 1.0) > 1e-9:
        raise ValueError(f"weights must sum to 1, got {float(weights.double().sum())}; divide them by their sum")
