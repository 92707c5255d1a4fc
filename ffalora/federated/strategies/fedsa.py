"""FedSA-LoRA (Guo et al., ICLR 2025): both factors are trained, only ``a`` is shared, each client keeps its ``b``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .base import BYTES_PER_NUMBER, ServerState, Strategy
from .factors import aggregation_gap

_PERSONAL = "personal"


class FedSA(Strategy):
    """Clients are evaluated with their own ``b``, and the metrics are averaged. The saved adapter holds the shared
    ``a`` and the mean of the personal ``b``, which only a simulation knows: sample-level noise covers every ``b``,
    client-level noise at the server would not, and is refused.
    """

    name = "fedsa"
    trained = "both"
    exact = False
    personal = True
    summary = "FedSA-LoRA: a shared and averaged, b personal"
    up = "a"
    down = "a"
    aggregation = "average of a"
    privacy = "sample level"

    def begin(self) -> ServerState:
        server = super().begin()
        server.tensors[_PERSONAL] = server.row.repeat(self.clients, 1)
        return server

    def start(self, server: ServerState, clients: Sequence[int]) -> Tensor:
        own = server.tensors[_PERSONAL][list(clients)].to(server.row.device)
        return torch.where(self._personal_columns(), own, server.row)

    def aggregate(self, server: ServerState, clients: Sequence[int], rows: Tensor, weights: Tensor) -> float:
        gap = aggregation_gap(self.adapters, rows, weights) if len(rows) else 0.0
        columns = self._personal_columns()
        for client, row in zip(clients, rows, strict=True):
            self.remember(server, client, row)
        shared = self.average(server, server.row, torch.where(columns, server.row, rows), weights)
        server.row = torch.where(columns, server.row, shared)
        return gap

    def views(self, server: ServerState) -> Iterator[None]:
        for client in range(self.clients):
            self.adapters.load_state_(self.start(server, [client])[0])
            yield

    def export(self, server: ServerState) -> None:
        personal = server.tensors[_PERSONAL].to(server.row.device).mean(0)
        self.adapters.load_state_(torch.where(self._personal_columns(), personal, server.row))

    def upload(self, row: Tensor) -> Tensor:
        return self.adapters.layout.payload(row)[~self.adapters.layout.payload(self._personal_columns())]

    def received(self, payload: Tensor) -> Tensor:
        layout = self.adapters.layout
        whole = layout.payload(self.adapters.state())
        whole[~layout.payload(self._personal_columns())] = payload
        return layout.from_payload(whole)

    def download(self, server: ServerState) -> Tensor:
        return self.upload(server.row)

    def adopt(self, server: ServerState, numbers: Tensor) -> None:
        if BYTES_PER_NUMBER * numbers.numel() != self.bytes_up():
            raise ValueError(f"the server sent {numbers.numel()} numbers, the shared a has {self.bytes_up() // 4}")
        server.row = self.received(numbers)

    def remember(self, server: ServerState, client: int, row: Tensor) -> None:
        server.tensors[_PERSONAL][client] = row.to(server.tensors[_PERSONAL])

    def bytes_up(self, client: int | None = None) -> int:
        return BYTES_PER_NUMBER * sum(p.size for p in self.adapters.layout.places if p.tensor != "lora_B")

    def bytes_down(self, server: ServerState, cohort: Sequence[int]) -> int:
        return len(cohort) * self.bytes_up()

    def _personal_columns(self) -> Tensor:
        columns = torch.zeros(self.adapters.layout.width, dtype=torch.bool)
        for place in self.adapters.layout.places:
            if place.tensor == "lora_B":
                columns[place.start : place.start + place.size] = True
        return columns.to(self.adapters.state().device)
