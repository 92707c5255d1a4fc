"""FLoRA (Wang et al., NeurIPS 2024): clients' factors are stacked, merged into the base, and everyone starts anew."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...adapters.init import initial_a
from .base import BYTES_PER_NUMBER, ServerState
from .factors import factors, relative_gap, stacked, write_factors_
from .ranks import Ranked
from .residual import MergesIntoBase

_SENT = "sent"


class FLoRA(MergesIntoBase, Ranked):
    """Exact for any ranks: stacking gives ``Σ w_k b_k a_k``. The download grows with the sum of the ranks, and every
    client of the federation needs it, drawn or not. The saved adapter has the rank that holds everything merged.
    """

    name = "flora"
    steady = False
    summary = "FLoRA: factors stacked and merged into the base, adapters start anew; exact, any ranks"
    up = "a, b"
    down = "the stacked factors of the last cohort (rank Σr)"
    aggregation = "stacking into the base"

    def aggregate(self, server: ServerState, clients: Sequence[int], rows: Tensor, weights: Tensor) -> float:
        row, products, sent = self.average(server, server.row, rows, weights), {}, 0
        for name, layer in self.adapters.layers.items():
            b, a = factors(self.adapters, name, rows)
            up, down = stacked(b, a, weights)
            product = products[name] = up @ down
            adapter = self.config.adapter
            fresh = initial_a(layer.rank, a.shape[2], adapter.init, adapter.seed, f"{name}/{server.round + 1}")
            write_factors_(self.adapters, name, row, torch.zeros_like(b[0]), fresh)
            stack = sum(min(self.ranks[c], layer.rank) for c in clients)
            sent += min(product.numel(), stack * sum(product.shape))
        server.row = row
        server.tensors[_SENT] = torch.tensor([sent])
        added = self._base.add(server.tensors, products)
        return relative_gap([(product, added[name]) for name, product in products.items()])

    def bytes_down(self, server: ServerState, cohort: Sequence[int]) -> int:
        heads = sum(place.size for place in self.adapters.layout.places if not place.tensor.startswith("lora_"))
        stack = int(server.tensors.get(_SENT, torch.zeros(1))[0])
        return BYTES_PER_NUMBER * (heads * len(cohort) + stack * self.clients)
