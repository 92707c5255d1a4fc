"""What a federated method is: where the clients of a round start, and how the server puts their answers together.

Both are functions of rows and of a layout that never changes: they neither read nor write the model. The round loop
(``simulate``) writes it, by one call of :meth:`Strategy.load` before it trains, evaluates or saves. What travels is the
business of the method's :class:`~.wire.Wire`; sampling, training, privacy and faults are the loop's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...adapters import Adapters
from ...config import Config
from ..server_optim import server_step
from .wire import AVERAGE, ServerState, Wire

#: (start [P], rows [C,P], weights [C]) -> the average [P].
Mean = Callable[[Tensor, Tensor, Tensor], Tensor]


def weighted_mean(start: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """``weights @ rows``, summed row by row in float64: float32 ``[P]``."""
    total = torch.zeros_like(start, dtype=torch.float64)
    for row, weight in zip(rows, weights.tolist(), strict=True):
        total.add_(row, alpha=weight)
    return total.to(rows.dtype)


@dataclass(frozen=True)
class Answers:
    """What a cohort sent.

    Attributes:
        clients: their ids; rows: float32 ``[C,P]``, where each ended; weights: float64 ``[C]``, summing to 1.
        mean: how rows are averaged: plainly, or with the noise of client-level privacy.
    """

    clients: Sequence[int]
    rows: Tensor
    weights: Tensor
    mean: Mean = weighted_mean


@dataclass(frozen=True)
class Facts:
    """What the table of methods says of one.

    Attributes:
        up, down: what travels each way.
        aggregation: how it is put together.
        privacy: what may be said about differential privacy.
        trained: what is trained, where ``Strategy.trained`` does not say it.
    """

    up: str
    down: str
    aggregation: str = "average"
    privacy: str = "sample level; client level"
    trained: str = ""


class Strategy:
    """Federated averaging of whatever is trained; the base of every method.

    Class attributes:
        name: as in ``federation.strategy``.
        facts: what the table of methods says.
        trained: the factor trained in the first round ('b', 'a', 'both' or 'core').
        wire_class: what travels.
        exact: what the server ends with is the weighted average of the clients' updates.
        linear: the server needs only a weighted sum of what clients send: what secure aggregation, client-level privacy
            and server optimisers can work with.
        personal: clients keep factors that never leave them; noise on what is shared does not cover these, nor what is
            made of them.
        takes_ranks: clients may have ranks of their own.
        steady: columns keep their meaning from round to round, so that moments may be kept.
        averages: rows of several rounds may be averaged: their columns keep their meaning, or the average is forgotten
            where they do not.
        moves_rows_only: nothing but the rows of clients differs between runs of one seed.
        random_init: works with a random ``a`` and an unchanged base weight only.
        renews: makes ``a`` anew every ``federation.refactor_every`` rounds, when the moments of the server's optimiser
            begin anew.
        whitens: local steps are taken in coordinates of the product.
        prunes: clients may lose ranks as the run goes (``federation.rank_pruning``).

    Attributes:
        layout: who owns which columns of ``ServerState.row``; the same in all rounds.
    """

    name: ClassVar[str]
    facts: ClassVar[Facts]
    trained: ClassVar[str]
    wire_class: ClassVar[type[Wire]] = Wire
    exact: ClassVar[bool]
    linear: ClassVar[bool] = True
    personal: ClassVar[bool] = False
    takes_ranks: ClassVar[bool] = False
    steady: ClassVar[bool] = True
    averages: ClassVar[bool] = False
    moves_rows_only: ClassVar[bool] = False
    random_init: ClassVar[bool] = False
    renews: ClassVar[bool] = False
    whitens: ClassVar[bool] = False
    prunes: ClassVar[bool] = False

    def __init__(self, adapters: Adapters, config: Config, clients: int):
        self.adapters, self.config, self.clients = adapters, config, clients
        self.layout = adapters.layout
        self.wire = self.wire_class(adapters, self.layout, config, clients)

    def trained_in(self, round_number: int) -> str:
        """The factor trained in a round (counted from 0)."""
        return self.trained

    def begin(self) -> ServerState:
        """The state before the first round: what the model holds."""
        return ServerState(self.layout.gather())

    def start(self, server: ServerState, clients: Sequence[int]) -> Tensor:
        """Rows ``[C,P]`` that the cohort's clients start from, in the columns trained in this round."""
        return server.row.repeat(len(clients), 1)

    def mask(self, server: ServerState, clients: Sequence[int]) -> Tensor | None:
        """bool ``[C,P]``, the columns that each client has; None where every client has them all."""
        return None

    def aggregate(self, server: ServerState, answers: Answers) -> float:
        """Puts the cohort's rows together, changing ``server``.

        Returns:
            How far the result is from the weighted average of the updates, relative to it (0 where exact).
        """
        server.row = self.average(server, server.row, answers)
        return 0.0

    def average(self, server: ServerState, start: Tensor, answers: Answers) -> Tensor:
        """The row ``[P]`` that the mean and the server's optimiser make of the answers, given their ``start``."""
        mean, federation = answers.mean(start, answers.rows, answers.weights), self.config.federation
        if federation.server_optimizer == "fedavg" and federation.server_lr == 1.0:
            return mean
        return server_step(server.tensors, start, mean, federation, self.trained_in(server.round))

    def load(self, server: ServerState, row: Tensor | None = None, trains: bool = False) -> None:
        """Writes a row of :attr:`layout` (default: the global one) into the model.

        Args:
            trains: a round begins, and the model trains that round's factor from here on.
        """
        if trains and (trained := self.trained_in(server.round)) != self.adapters.config.trained:
            self.adapters.train_factors(trained)
        self.layout.scatter(server.row if row is None else row)

    def views(self, server: ServerState) -> Iterable[tuple[Tensor, int]]:
        """The row of each model that is to be evaluated, and how many clients have it: its weight in the average."""
        return ((server.tensors.get(AVERAGE, server.row), 1),)

    def export(self, server: ServerState) -> None:
        """Prepares the model for saving: afterwards the adapters alone hold everything that was learned."""
        self.load(server, server.tensors.get(AVERAGE, server.row))

    def remember(self, server: ServerState, client: int, row: Tensor) -> None:
        """Keeps what a client does not share of the row ``[P]`` that it ended at (really: at the client)."""
