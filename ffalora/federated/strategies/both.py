"""Methods that train one factor in a round while the other changes between rounds: the server's row holds both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...adapters import Adapters
from ...adapters.state import Layout
from ...config import Config
from .base import Answers, ServerState, Strategy
from .wire import Wire


class BothWire(Wire):
    """Clients send the factor that was trained, and receive what they lack of both.

    Attributes:
        layouts: of the rows in which 'b' or 'a' is trained.
    """

    def __init__(self, adapters: Adapters, layout: Layout, config: Config, clients: int):
        self.layouts = {factor: layout_of(adapters, factor) for factor in "ab"}
        super().__init__(adapters, layout_of(adapters, "both"), config, clients)

    def factor(self, round_number: int) -> str:
        """The factor trained in a round (counted from 0)."""
        return "b"

    def trained_layout(self, server: ServerState) -> Layout:
        return self.layouts[self.factor(server.round)]

    @property
    def everyone_is_there(self) -> bool:
        """Whether every client receives every round, and hence lacks nothing of those before."""
        return self.config.federation.participation == 1


class KeepsBoth(Strategy):
    """Which columns a round trains is a selection of the row's; the others stay as they are."""

    trained = "b"
    steady = False
    wire_class = BothWire
    wire: BothWire

    def __init__(self, adapters: Adapters, config: Config, clients: int):
        super().__init__(adapters, config, clients)
        self.layout = self.wire.layout
        self._columns = {factor: columns_of(part, self.layout) for factor, part in self.wire.layouts.items()}
        adapters.train_factors(self.trained)

    def trained_in(self, round_number: int) -> str:
        return self.wire.factor(round_number)

    def columns(self, server: ServerState) -> Tensor:
        """int64: where the columns trained in this round lie in the row."""
        return self._columns[self.trained_in(server.round)].to(server.row.device)

    def start(self, server: ServerState, clients: Sequence[int]) -> Tensor:
        return server.row[self.columns(server)].repeat(len(clients), 1)

    def aggregate(self, server: ServerState, answers: Answers) -> float:
        columns = self.columns(server)
        part = self.average(server, server.row[columns], answers)
        server.row = server.row.index_copy(0, columns, part)
        return 0.0


def layout_of(adapters: Adapters, factor: str) -> Layout:
    """The layout of rows in which ``factor`` is trained, which it is from here on."""
    adapters.train_factors(factor)
    return adapters.layout


def columns_of(part: Layout, whole: Layout) -> Tensor:
    """int64 ``[part.width]``: the columns of ``part`` in ``whole``; padding lies beside what it pads in both."""
    starts = {place.name: place.start for place in whole.places}
    ends = [*(place.start for place in part.places[1:]), part.width]
    ranges = zip(part.places, ends, strict=True)
    return torch.cat([torch.arange(end - place.start) + starts[place.name] for place, end in ranges])
