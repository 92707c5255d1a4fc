"""FedSA-LoRA (Guo et al., ICLR 2025): both factors are trained, only ``a`` is shared, each client keeps its ``b``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...adapters import Adapters
from ...adapters.state import Layout
from ...config import Config
from .base import Answers, Facts, ServerState, Strategy
from .factors import aggregation_gap
from .wire import BYTES_PER_NUMBER, Wire

_PERSONAL, _FIRST = "personal", "personal.first"


class FedSAWire(Wire):
    """``a`` (and a trained head) alone travels, both ways.

    Attributes:
        personal: bool ``[P]``, the columns of every ``b``.
    """

    def __init__(self, adapters: Adapters, layout: Layout, config: Config, clients: int):
        super().__init__(adapters, layout, config, clients)
        self.personal = torch.zeros(layout.width, dtype=torch.bool, device=layout.gather().device)
        for place in layout.places:
            if place.tensor == "lora_B":
                self.personal[place.columns] = True
        self._is_shared = ~layout.payload(self.personal)
        self._shared = sum(place.size for place in layout.places if place.tensor != "lora_B")

    def upload(self, server: ServerState, row: Tensor) -> Tensor:
        return self.layout.payload(row)[self._is_shared]

    def received(self, server: ServerState, payload: Tensor) -> Tensor:
        whole = self.layout.payload(server.row).clone()
        whole[self._is_shared] = payload.to(whole)
        return self.layout.from_payload(whole)

    def download(self, server: ServerState) -> Tensor:
        return self.upload(server, server.row)

    def adopt(self, server: ServerState, numbers: Tensor) -> None:
        wanted = self._shared
        if numbers.numel() != wanted:
            raise ValueError(f"the server sent {numbers.numel()} numbers, the shared a has {wanted}")
        server.row = self.received(server, numbers)

    def numbers_up(self, server: ServerState, client: int | None = None) -> int:
        return self._shared

    def bytes_down(self, server: ServerState, cohort: Sequence[int]) -> int:
        return len(cohort) * BYTES_PER_NUMBER * self._shared


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
    wire: FedSAWire
    facts = Facts(up="a", down="a", aggregation="average of a", privacy="sample level")

    def begin(self) -> ServerState:
        server = super().begin()
        server.tensors[_FIRST] = server.row.clone()
        return server

    def start(self, server: ServerState, clients: Sequence[int]) -> Tensor:
        own = server.clients.rows(_PERSONAL, clients, server.tensors[_FIRST]).to(server.row.device)
        return torch.where(self.wire.personal, own, server.row)

    def aggregate(self, server: ServerState, answers: Answers) -> float:
        clients, rows, weights = answers.clients, answers.rows, answers.weights
        gap = aggregation_gap(self.layout, rows, weights)
        columns = self.wire.personal
        server.clients.put(_PERSONAL, clients, rows)
        shared = self.average(server, server.row, replace(answers, rows=torch.where(columns, server.row, rows)))
        server.row = torch.where(columns, server.row, shared)
        return gap

    def views(self, server: ServerState) -> Iterator[tuple[Tensor, int]]:
        known = server.clients.known(_PERSONAL)
        if len(known) < self.clients:  # whoever was never drawn has the b of the start
            yield torch.where(self.wire.personal, server.tensors[_FIRST], server.row), self.clients - len(known)
        yield from ((self.start(server, [client])[0], 1) for client in known)

    def export(self, server: ServerState) -> None:
        total = torch.zeros(server.row.shape, dtype=torch.float64, device=server.row.device)
        for row, clients in self.views(server):
            total += clients * row.double()
        self.load(server, torch.where(self.wire.personal, (total / self.clients).to(server.row), server.row))

    def remember(self, server: ServerState, client: int, row: Tensor) -> None:
        server.clients.put(_PERSONAL, [client], row[None])
