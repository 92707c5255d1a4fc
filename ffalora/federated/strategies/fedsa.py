"""FedSA-LoRA (Guo et al., ICLR 2025): both factors are trained, only ``a`` is shared, each client keeps its ``b``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...adapters.state import Layout
from .base import Facts, Mean, ServerState, Strategy, weighted_mean
from .factors import aggregation_gap
from .wire import BYTES_PER_NUMBER, Wire

_PERSONAL = "personal"


def _personal_columns(layout: Layout) -> Tensor:
    """bool ``[P]``: the columns of every ``b``."""
    columns = torch.zeros(layout.width, dtype=torch.bool)
    for place in layout.places:
        if place.tensor == "lora_B":
            columns[place.start : place.start + place.size] = True
    return columns


class FedSAWire(Wire):
    """``a`` (and a trained head) alone travels, both ways."""

    def upload(self, server: ServerState, row: Tensor) -> Tensor:
        return self.layout.payload(row)[self._is_shared().to(row.device)]

    def received(self, server: ServerState, payload: Tensor) -> Tensor:
        whole = self.layout.payload(server.row).clone()
        whole[self._is_shared().to(whole.device)] = payload.to(whole)
        return self.layout.from_payload(whole)

    def download(self, server: ServerState) -> Tensor:
        return self.upload(server, server.row)

    def adopt(self, server: ServerState, numbers: Tensor) -> None:
        wanted = int(self._is_shared().sum())
        if numbers.numel() != wanted:
            raise ValueError(f"the server sent {numbers.numel()} numbers, the shared a has {wanted}")
        server.row = self.received(server, numbers)

    def bytes_up(self, server: ServerState, client: int | None = None) -> int:
        return BYTES_PER_NUMBER * int(self._is_shared().sum())

    def bytes_down(self, server: ServerState, cohort: Sequence[int]) -> int:
        return len(cohort) * self.bytes_up(server)

    def _is_shared(self) -> Tensor:
        return ~self.layout.payload(_personal_columns(self.layout))


class FedSA(Strategy):
    """Clients are evaluated with their own ``b``, and the metrics are averaged. The saved adapter holds the shared
    ``a`` and the mean of the personal ``b``, which only a simulation knows: sample-level noise covers every ``b``,
    client-level noise at the server would not, and is refused.
    """

    name = "fedsa"
    trained = "both"
    exact = False
    personal = True
    wire_class = FedSAWire
    facts = Facts(
        summary="FedSA-LoRA: a shared and averaged, b personal",
        up="a",
        down="a",
        aggregation="average of a",
        privacy="sample level",
    )

    def begin(self) -> ServerState:
        server = super().begin()
        server.tensors[_PERSONAL] = server.row.repeat(self.clients, 1)
        return server

    def start(self, server: ServerState, clients: Sequence[int]) -> Tensor:
        own = server.tensors[_PERSONAL][list(clients)].to(server.row.device)
        return torch.where(self._personal(server), own, server.row)

    def aggregate(
        self, server: ServerState, clients: Sequence[int], rows: Tensor, weights: Tensor, mean: Mean = weighted_mean
    ) -> float:
        gap = aggregation_gap(self.layout, rows, weights) if len(rows) else 0.0
        columns = self._personal(server)
        for client, row in zip(clients, rows, strict=True):
            self.remember(server, client, row)
        shared = self.average(server, server.row, torch.where(columns, server.row, rows), weights, mean)
        server.row = torch.where(columns, server.row, shared)
        return gap

    def views(self, server: ServerState) -> Iterator[Tensor]:
        return (self.start(server, [client])[0] for client in range(self.clients))

    def export(self, server: ServerState) -> None:
        personal = server.tensors[_PERSONAL].to(server.row.device).mean(0)
        self.load(server, torch.where(self._personal(server), personal, server.row))

    def remember(self, server: ServerState, client: int, row: Tensor) -> None:
        server.tensors[_PERSONAL][client] = row.to(server.tensors[_PERSONAL])

    def _personal(self, server: ServerState) -> Tensor:
        return _personal_columns(self.layout).to(server.row.device)
