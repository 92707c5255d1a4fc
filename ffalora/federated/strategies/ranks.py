"""Clients with ranks of their own: which columns each has, and what each sends."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...config import Config
from .base import ServerState, Strategy
from .factors import rank_mask
from .wire import BYTES_PER_NUMBER, Wire

RANKS = "ranks"


def ranks_of(server: ServerState, config: Config, clients: int) -> list[int]:
    """The rank of every client, of which a layer with less has its own: those that the server keeps, or the configured
    ones.
    """
    if RANKS in server.tensors:
        return server.tensors[RANKS].tolist()
    return list(config.clients.ranks or [config.adapter.largest_rank] * clients)


class RankedWire(Wire):
    """Each way a client's own ranks alone count; heads are everyone's."""

    def numbers_up(self, server: ServerState, client: int | None = None) -> int:
        ranks = ranks_of(server, self.config, self.clients)
        return max(self._numbers(rank) for rank in (ranks if client is None else [ranks[client]]))

    def bytes_down(self, server: ServerState, cohort: Sequence[int]) -> int:
        return BYTES_PER_NUMBER * sum(self.numbers_up(server, client) for client in cohort)

    def _numbers(self, rank: int) -> int:
        layers = self.adapters.layers.values()
        own = sum(min(rank, layer.rank) * (layer.lora_B.shape[0] + layer.lora_A.shape[1]) for layer in layers)
        return own + self.head_numbers()


class Ranked(Strategy):
    """LoRA where client k trains the first ``ranks[k]`` rows of ``a`` and columns of ``b``; the others are zero.

    Zero columns get zero gradients; noise in them is taken away again, since they do not exist at the client.
    """

    trained = "both"
    linear = False
    takes_ranks = True
    wire_class = RankedWire

    def ranks(self, server: ServerState) -> list[int]:
        """The rank of every client of the federation."""
        return ranks_of(server, self.config, self.clients)

    def start(self, server: ServerState, clients: Sequence[int]) -> Tensor:
        rows, mask = super().start(server, clients), self.mask(server, clients)
        return rows if mask is None else rows * mask.to(rows.device)

    def mask(self, server: ServerState, clients: Sequence[int]) -> Tensor | None:
        everyone = self.ranks(server)
        ranks = [everyone[c] for c in clients]
        return None if min(ranks, default=0) >= self.config.adapter.largest_rank else rank_mask(self.layout, ranks)
