"""What a federated method decides: what is trained, what travels, and how the server puts the answers together.

The round loop (``simulate``) calls, in each round: ``begin_round``, ``start`` for the rows that the cohort starts from,
and ``aggregate`` with the rows it ended at. Everything else (sampling, training, privacy, counting bytes) is the
loop's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ...adapters import Adapters
from ...config import Config

BYTES_PER_NUMBER = 4


@dataclass
class ServerState:
    """What outlives a round.

    Attributes:
        row: float32 ``[P]``, the global trained parameters.
        round: rounds completed.
        tensors: whatever else a strategy keeps (personal factors, residuals, server moments), by name; saved in
            checkpoints.
    """

    row: Tensor
    round: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Strategy:
    """Federated averaging of whatever is trained; the base of every method.

    Attributes:
        name: as in ``federation.strategy``.
        trained: the factor trained in the first round ('b', 'a' or 'both').
        exact: the average of the clients' factors is the average of their updates.
        linear: the server needs only a weighted sum of the rows (what secure aggregation can compute).
        summary: one sentence for tables and help.
    """

    name: ClassVar[str]
    trained: ClassVar[str]
    exact: ClassVar[bool]
    linear: ClassVar[bool] = True
    summary: ClassVar[str]

    def __init__(self, adapters: Adapters, config: Config):
        self.adapters = adapters
        self.config = config

    @property
    def shares_a(self) -> bool:
        """Every client of a round uses the same ``a``, so that all of them can train in one pass."""
        return all(place.tensor != "lora_A" for place in self.adapters.layout.places)

    def begin(self) -> ServerState:
        """The state before the first round."""
        return ServerState(self.adapters.state())

    def begin_round(self, server: ServerState) -> None:
        """Prepares the model for the round (switches the trained factor, loads a new ``a``); most methods have nothing
        to do.
        """

    def start(self, server: ServerState, clients: Sequence[int]) -> Tensor:
        """Rows ``[C,P]`` that the cohort's clients start from."""
        return server.row.expand(len(clients), -1).clone()

    def aggregate(self, server: ServerState, clients: Sequence[int], rows: Tensor, weights: Tensor) -> None:
        """Puts the cohort's rows ``[C,P]`` together with ``weights [C]`` (float64, summing to 1), changing
        ``server``.
        """
        server.row = weighted_mean(rows, weights)

    def finish(self, server: ServerState) -> None:
        """Writes the global parameters into the model, for evaluation and for saving."""
        self.adapters.load_state_(server.row)

    def bytes_up(self) -> int:
        """What one client sends in a round."""
        return BYTES_PER_NUMBER * self.adapters.layout.size

    def bytes_down(self, server: ServerState) -> int:
        """What one client receives in a round. In the first, a seed stands for the frozen factor."""
        return BYTES_PER_NUMBER * self.adapters.layout.size


def weighted_mean(rows: Tensor, weights: Tensor) -> Tensor:
    """``weights @ rows``, summed in float64: float32 ``[P]``."""
    return (weights.to(rows.device, torch.float64) @ rows.double()).to(rows.dtype)


@torch.no_grad()
def aggregation_gap(adapters: Adapters, rows: Tensor, weights: Tensor) -> float:
    """``‖mean(B_k A_k) - mean(B_k) mean(A_k)‖ / ‖mean(B_k A_k)‖`` over all layers: 0 where averaging is exact.

    Both means are weighted; a frozen factor is the same for every client.
    """
    missing = total = 0.0
    weights = weights.to(rows.device, torch.float64)
    for layer in adapters.layers.values():
        factors = []
        for tensor, parameter in (("lora_B", layer.lora_B), ("lora_A", layer.lora_A)):
            start = layer.places.get(tensor)
            own = parameter.detach()[None].expand(len(rows), *parameter.shape)
            if start is not None:
                own = rows[:, start : start + parameter.numel()].view(-1, *parameter.shape)
            factors.append(own.double())
        b, a = factors
        exact = torch.einsum("c,cnr,crk->nk", weights, b, a)
        averaged = torch.einsum("c,cnr->nr", weights, b) @ torch.einsum("c,crk->rk", weights, a)
        missing += float((exact - averaged).square().sum())
        total += float(exact.square().sum())
    return (missing / total) ** 0.5 if total else 0.0
