"""FLoRA (Wang et al., NeurIPS 2024): clients' factors are stacked, merged into the base, and everyone starts anew."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...adapters.init import initial_a
from .base import Answers, Facts, ServerState
from .factors import factors, relative_gap, stacked, write_factors_
from .ranks import Ranked, RankedWire
from .residual import MergesIntoBase, ResidualWire
from .wire import BYTES_PER_NUMBER


class FLoRAWire(ResidualWire, RankedWire):
    """Clients send their ranks, and everybody receives the stack of the last cohort."""

    def bytes_down(self, server: ServerState, cohort: Sequence[int]) -> int:
        return BYTES_PER_NUMBER * (self.head_numbers() * len(cohort) + self.sent(server) * self.clients)


class FLoRA(MergesIntoBase, Ranked):
    """Exact for any ranks: stacking gives ``Σ w_k b_k a_k``. The download grows with the sum of the ranks, and every
    client of the federation needs it, drawn or not. The saved adapter has the rank that holds everything merged.
    """

    name = "flora"
    wire_class = FLoRAWire
    steady = False
    facts = Facts(
        up="a, b",
        down="the stacked factors of the last cohort (rank Σr)",
        aggregation="stacking into the base",
        privacy="sample level",
    )

    def aggregate(self, server: ServerState, answers: Answers) -> float:
        clients, rows, weights = answers.clients, answers.rows, answers.weights
        row, products, sent = self.average(server, server.row, answers), {}, 0
        ranks = self.ranks(server)
        for name, layer in self.adapters.layers.items():
            b, a = factors(self.layout, name, rows)
            up, down = stacked(b, a, weights)
            product = products[name] = up @ down
            adapter = self.config.adapter
            fresh = initial_a(layer.rank, a.shape[2], adapter.init, adapter.seed, f"{name}/{server.round + 1}")
            write_factors_(self.layout, name, row, torch.zeros_like(b[0]), fresh)
            stack = sum(min(ranks[c], layer.rank) for c in clients)
            sent += min(product.numel(), stack * sum(product.shape))
        server.row = row
        self.wire.send(server, sent)
        added = self._base.add(server.tensors, products)
        return relative_gap([(product, added[name]) for name, product in products.items()])
