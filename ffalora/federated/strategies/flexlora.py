"""FlexLoRA (Bai et al., NeurIPS 2024): the average of the products, cut by SVD to each client's rank."""

from __future__ import annotations

from .base import Answers, Facts, ServerState
from .factors import factors, low_rank_svd, padded, relative_gap, stacked, write_factors_
from .ranks import Ranked


class FlexLoRA(Ranked):
    """``Σ w_k b_k a_k = U S Vᵀ``; client k receives the first r_k columns of ``b = U S`` and rows of ``a = Vᵀ``.

    Exact up to the cut at ``adapter.rank``, which the gap measures. A layer whose average is zero keeps its factors.
    """

    name = "flexlora"
    exact = False
    steady = False
    facts = Facts(
        up="a, b of its rank", down="a, b of its rank", aggregation="SVD of the average product", privacy="sample level"
    )

    def aggregate(self, server: ServerState, answers: Answers) -> float:
        rows, weights = answers.rows, answers.weights
        row, parts = self.average(server, server.row, answers), []
        for name, layer in self.adapters.layers.items():
            b, a = factors(self.layout, name, rows)
            up, down = stacked(b, a, weights)
            u, s, vt = low_rank_svd(up, down)
            if float(s[0]) > 0:
                new_b, new_a = padded(u, s, vt, layer.rank)
            else:
                old_b, old_a = factors(self.layout, name, server.row[None])
                new_b, new_a = old_b[0], old_a[0]
            write_factors_(self.layout, name, row, new_b, new_a)
            parts.append((up @ down, new_b @ new_a))
        server.row = row
        return relative_gap(parts)
