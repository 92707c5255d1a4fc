"""FedSVD (NeurIPS 2025): FFA-LoRA whose frozen ``a`` the server replaces by the right singular vectors of ``b a``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..server_optim import forget_moments
from .base import BYTES_PER_NUMBER, ServerState, Strategy
from .factors import low_rank_svd, padded


class FedSVD(Strategy):
    """After every ``federation.refactor_every`` rounds ``b a = U S Vᵀ`` becomes ``b = U S``, ``a = Vᵀ``: the product
    stays, ``a`` is orthonormal and follows what was learned. It is computed from what the server has anyway, hence free
    under differential privacy. Where ``b`` is zero there is nothing to follow, and ``a`` stays.
    """

    name = "fedsvd"
    trained = "b"
    kept = "both"
    exact = True
    steady = False
    summary = "FedSVD: FFA-LoRA with a renewed from the SVD of the average product; exact"
    up = "b"
    down = "b; after a renewal also a"
    aggregation = "average, then SVD of the product"
    privacy = "sample level; client level; the renewal is post-processing"

    def aggregate(self, server: ServerState, clients: Sequence[int], rows: Tensor, weights: Tensor) -> float:
        self.adapters.load_state_(self.average(server, self.adapters.state(), rows, weights))
        if (server.round + 1) % self.config.federation.refactor_every == 0:
            self._renew()
            forget_moments(server.tensors)
        self.keep(server)
        return 0.0

    def bytes_down(self, server: ServerState, cohort: Sequence[int]) -> int:
        numbers = self.adapters.layout.size
        if server.round and server.round % self.config.federation.refactor_every == 0:
            numbers += sum(layer.lora_A.numel() for layer in self.adapters.layers.values())
        return len(cohort) * BYTES_PER_NUMBER * numbers

    @torch.no_grad()
    def _renew(self) -> None:
        for layer in self.adapters.layers.values():
            u, s, vt = low_rank_svd(layer.lora_B.double(), layer.lora_A.double())
            if float(s[0]) > 0:
                b, a = padded(u, s, vt, layer.rank)
                layer.lora_B.copy_(b)
                layer.lora_A.copy_(a)
