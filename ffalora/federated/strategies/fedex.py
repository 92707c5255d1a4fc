"""FedEx-LoRA (Singhal et al., ACL 2025): what averaging the factors loses is added to the frozen base weight."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Answers, Facts, ServerState
from .factors import factors, relative_gap, stacked
from .residual import MergesIntoBase, ResidualWire
from .wire import BYTES_PER_NUMBER


class FedExWire(ResidualWire):
    """Both factors, and to everybody the residual of the last round."""

    def bytes_down(self, server: ServerState, cohort: Sequence[int]) -> int:
        return super().bytes_down(server, cohort) + BYTES_PER_NUMBER * self.sent(server) * self.clients


class FedEx(MergesIntoBase):
    """Exact: ``mean(b_k) mean(a_k)`` plus the residual ``mean(b_k a_k) - mean(b_k) mean(a_k)`` is the mean update.

    Every client of the federation receives every residual, drawn or not: as factors of rank C·R, or whole where that is
    less. The saved adapter has the rank that holds all residuals.
    """

    name = "fedex"
    wire_class = FedExWire
    facts = Facts(
        up="a, b",
        down="a, b, and the residual (rank C·R)",
        aggregation="average of each factor, residual into the base",
        privacy="sample level",
    )

    def aggregate(self, server: ServerState, answers: Answers) -> float:
        rows, weights = answers.rows, answers.weights
        server.row = self.average(server, server.row, answers)
        wanted, averaged, sent = {}, {}, 0
        for name in self.adapters.layers:
            b, a = factors(self.layout, name, rows)
            up, down = stacked(b, a, weights)
            mean_b, mean_a = factors(self.layout, name, server.row[None])
            wanted[name], averaged[name] = up @ down, mean_b[0] @ mean_a[0]
            sent += min(wanted[name].numel(), down.shape[0] * sum(wanted[name].shape))
        self.wire.send(server, sent)
        added = self._base.add(server.tensors, {name: wanted[name] - averaged[name] for name in wanted})
        return relative_gap([(wanted[name], averaged[name] + added[name]) for name in wanted])
