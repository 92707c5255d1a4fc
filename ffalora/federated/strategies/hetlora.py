"""HetLoRA (Cho et al., EMNLP 2024): ranks per client, zero-padded, averaged by the norm of what each learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import ServerState
from .factors import factors, relative_gap, stacked, write_factors_
from .ranks import Ranked

_RANKS = "ranks"


class HetLoRA(Ranked):
    """Each factor is the average of the zero-padded factors with weights ``‖b_k a_k‖`` (by layer), then truncated to
    each client's rank. Heads are averaged with the run's weights.

    With ``federation.rank_pruning`` γ < 1 a client whose last ranks (beyond γ of them) have less ``‖b‖·‖a‖`` after
    local training than before gives them up. The original's penalty on these ranks is not part of the local loss.
    """

    name = "hetlora"
    exact = False
    summary = "HetLoRA: ranks per client, zero-padded, norm-weighted, with rank pruning; inexact"
    up = "a, b of its rank"
    down = "a, b of its rank"
    aggregation = "norm-weighted average of each factor"

    def begin(self) -> ServerState:
        server = super().begin()
        server.tensors[_RANKS] = torch.tensor(self.ranks)
        return server

    def shared(self) -> dict[str, tuple[int, ...]]:
        return {_RANKS: (self.clients,)}

    def begin_round(self, server: ServerState) -> None:
        super().begin_round(server)
        self.ranks = server.tensors[_RANKS].tolist()

    def aggregate(self, server: ServerState, clients: Sequence[int], rows: Tensor, weights: Tensor) -> float:
        if self.config.federation.rank_pruning < 1:
            self._prune(server, clients, rows)
        row, parts = self.average(server, server.row, rows, weights), []
        for name in self.adapters.layers:
            b, a = factors(self.adapters, name, rows)
            norms = torch.linalg.matrix_norm(b @ a)
            share = norms / norms.sum() if float(norms.sum()) > 0 else weights.to(norms)
            new_b, new_a = torch.einsum("c,cnr->nr", share, b), torch.einsum("c,crk->rk", share, a)
            write_factors_(self.adapters, name, row, new_b, new_a)
            up, down = stacked(b, a, weights)
            parts.append((up @ down, new_b @ new_a))
        server.row = row
        return relative_gap(parts)

    def _prune(self, server: ServerState, clients: Sequence[int], rows: Tensor) -> None:
        before, after = self._tails(clients, self.start(server, clients)), self._tails(clients, rows)
        for i, client in enumerate(clients):
            if after[i] < before[i]:
                self.ranks[client] = self._kept(client)
        server.tensors[_RANKS] = torch.tensor(self.ranks)

    def _kept(self, client: int) -> int:
        return max(1, int(self.config.federation.rank_pruning * self.ranks[client]))

    def _tails(self, clients: Sequence[int], rows: Tensor) -> list[float]:
        """``Σ ‖b[:, γr:]‖·‖a[γr:]‖`` over layers, for each client."""
        found = [0.0] * len(clients)
        for name in self.adapters.layers:
            b, a = factors(self.adapters, name, rows)
            for i, client in enumerate(clients):
                kept = self._kept(client)
                found[i] += float(b[i, :, kept:].norm() * a[i, kept:].norm())
        return found
