"""Clients with ranks of their own: which columns each has, and what each sends."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...adapters import Adapters
from ...config import Config
from .base import BYTES_PER_NUMBER, ServerState, Strategy
from .factors import rank_mask


class Ranked(Strategy):
    """LoRA where client k trains the first ``ranks[k]`` rows of ``a`` and columns of ``b``; the others are zero.

    Zero columns get zero gradients; noise in them is taken away again, since they do not exist at the client.
    """

    trained = "both"
    linear = False
    takes_ranks = True
    privacy = "sample level"

    def __init__(self, adapters: Adapters, config: Config, clients: int):
        super().__init__(adapters, config, clients)
        self.ranks = list(config.clients.ranks or [config.adapter.rank] * clients)

    def start(self, server: ServerState, clients: Sequence[int]) -> Tensor:
        rows, mask = super().start(server, clients), self.mask(server, clients)
        return rows if mask is None else rows * mask.to(rows.device)

    def mask(self, server: ServerState, clients: Sequence[int]) -> Tensor | None:
        ranks = [self.ranks[c] for c in clients]
        return None if min(ranks, default=0) >= self.config.adapter.rank else rank_mask(self.adapters, ranks)

    def numbers(self, client: int) -> int:
        """Numbers that the client trains."""
        total = sum(place.size for place in self.adapters.layout.places if not place.tensor.startswith("lora_"))
        for layer in self.adapters.layers.values():
            total += min(self.ranks[client], layer.rank) * (layer.lora_B.shape[0] + layer.lora_A.shape[1])
        return total

    def bytes_up(self, client: int | None = None) -> int:
        if client is None:
            return max(self.bytes_up(each) for each in range(self.clients))
        return BYTES_PER_NUMBER * self.numbers(client)

    def bytes_down(self, server: ServerState, cohort: Sequence[int]) -> int:
        return sum(self.bytes_up(client) for client in cohort)
