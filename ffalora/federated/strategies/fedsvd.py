"""FedSVD (NeurIPS 2025): FFA-LoRA whose frozen ``a`` the server replaces by the right singular vectors of ``b a``."""

from __future__ import annotations

from collections.abc import Sequence

from ..server_optim import forget_moments
from .base import Answers, Facts, ServerState
from .both import BothWire, KeepsBoth
from .factors import factors, low_rank_svd, padded, write_factors_
from .wire import BYTES_PER_NUMBER


class FedSVDWire(BothWire):
    """``a`` goes down only after it was renewed: in the round that follows, and from the first renewal on to clients
    that may have sat that round out.
    """

    def bytes_down(self, server: ServerState, cohort: Sequence[int]) -> int:
        renewals, since = divmod(server.round, self.config.federation.refactor_every)
        lacks_a = renewals > 0 and (since == 0 or not self.everyone_is_there)
        return len(cohort) * BYTES_PER_NUMBER * (self.layout if lacks_a else self.trained_layout(server)).size


class FedSVD(KeepsBoth):
    """After every ``federation.refactor_every`` rounds ``b a = U S Vᵀ`` becomes ``b = U S``, ``a = Vᵀ``: the product
    stays, ``a`` is orthonormal and follows what was learned. It is computed from what the server has anyway, hence free
    under differential privacy. Where ``b`` is zero there is nothing to follow, and ``a`` stays, as it does at the end.
    """

    name = "fedsvd"
    renews = True
    exact = True
    averages = True
    wire_class = FedSVDWire
    facts = Facts(
        up="b",
        down="b; after a renewal also a (always to a client that may have sat out)",
        aggregation="average, then SVD of the product",
        privacy="sample level; client level; the renewal is post-processing",
    )

    def aggregate(self, server: ServerState, answers: Answers) -> float:
        super().aggregate(server, answers)
        federation, done = self.config.federation, server.round + 1
        if done % federation.refactor_every == 0 and done < federation.rounds:
            for name, layer in self.adapters.layers.items():
                b, a = factors(self.layout, name, server.row[None])
                u, s, vt = low_rank_svd(b[0], a[0])
                if float(s[0]) > 0:
                    write_factors_(self.layout, name, server.row, *padded(u, s, vt, layer.rank))
            forget_moments(server.tensors)
        return 0.0
