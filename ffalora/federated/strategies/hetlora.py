"""HetLoRA (Cho et al., EMNLP 2024): ranks per client, zero-padded, averaged by the norm of what each learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Answers, Facts, ServerState
from .factors import factors, rank_mask, relative_gap, stacked, write_factors_
from .ranks import RANKS, Ranked, RankedWire


class HetLoRAWire(RankedWire):
    """The ranks travel too, since pruning changes them."""

    def shared(self) -> dict[str, tuple[int, ...]]:
        return {RANKS: (self.clients,)}


class HetLoRA(Ranked):
    """Each factor is the average of the zero-padded factors with weights ``‖b_k a_k‖`` (by layer), then truncated to
    each client's rank. Ranks that nobody of the cohort has stay as they are, and those that nobody has any more are
    zero; heads are averaged with the run's weights.

    With ``federation.rank_pruning`` γ < 1 a client whose last ranks (beyond γ of them) have less ``‖b‖·‖a‖`` after
    local training than before gives them up for the next round. The original's penalty on these ranks is not part of
    the local loss.
    """

    name = "hetlora"
    prunes = True
    wire_class = HetLoRAWire
    exact = False
    facts = Facts(
        up="a, b of its rank",
        down="a, b of its rank",
        aggregation="norm-weighted average of each factor",
        privacy="sample level",
    )

    def begin(self) -> ServerState:
        server = super().begin()
        server.tensors[RANKS] = torch.tensor(self.ranks(server))
        return server

    def aggregate(self, server: ServerState, answers: Answers) -> float:
        clients, rows, weights = answers.clients, answers.rows, answers.weights
        ranks = self.ranks(server)
        there = rank_mask(self.layout, [max(ranks[client] for client in clients)])[0].to(server.row.device)
        if self.config.federation.rank_pruning < 1:
            self._prune(server, clients, rows)
        row, parts = self.average(server, server.row, answers), []
        for name in self.adapters.layers:
            b, a = factors(self.layout, name, rows)
            norms = torch.linalg.matrix_norm(b @ a)
            share = norms / norms.sum() if float(norms.sum()) > 0 else weights.to(norms)
            new_b, new_a = torch.einsum("c,cnr->nr", share, b), torch.einsum("c,crk->rk", share, a)
            write_factors_(self.layout, name, row, new_b, new_a)
            up, down = stacked(b, a, weights)
            parts.append((up @ down, new_b @ new_a))
        left = rank_mask(self.layout, [max(self.ranks(server))])[0].to(server.row.device)
        server.row = torch.where(there, row, server.row) * left
        return relative_gap(parts)

    def _prune(self, server: ServerState, clients: Sequence[int], rows: Tensor) -> None:
        ranks = self.ranks(server)
        kept = [max(1, int(self.config.federation.rank_pruning * ranks[client])) for client in clients]
        before, after = self._tails(kept, self.start(server, clients)), self._tails(kept, rows)
        for i, client in enumerate(clients):
            if after[i] < before[i]:
                ranks[client] = kept[i]
        server.tensors[RANKS] = torch.tensor(ranks)

    def _tails(self, kept: Sequence[int], rows: Tensor) -> list[float]:
        """``Σ ‖b[:, γr:]‖·‖a[γr:]‖`` over layers, for each client; ``kept`` are its γr ranks."""
        found = [0.0] * len(rows)
        for name in self.adapters.layers:
            b, a = factors(self.layout, name, rows)
            for i, rank in enumerate(kept):
                found[i] += float(b[i, :, rank:].norm() * a[i, rank:].norm())
        return found
