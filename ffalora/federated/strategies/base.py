"""What a federated method decides: what is trained, what travels, and how the server puts the answers together.

The round loop (``simulate``) calls, in each round: ``begin_round``, ``start`` for the rows that the cohort starts from,
and ``aggregate`` with the rows it ended at. Everything else (sampling, training, privacy, faults) is the loop's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ...adapters import Adapters
from ...config import Config
from ..server_optim import server_step

BYTES_PER_NUMBER = 4


@dataclass
class ServerState:
    """What outlives a round.

    Attributes:
        row: float32 ``[P]``, every global number that changes from round to round, in the columns of the factors that
            ``Strategy.kept`` names.
        round: rounds completed.
        tensors: whatever else is kept (personal factors, residuals, moments), by name; saved in checkpoints.
    """

    row: Tensor
    round: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Strategy:
    """Federated averaging of whatever is trained; the base of every method.

    Attributes:
        name: as in ``federation.strategy``.
        trained: the factor trained in the first round ('b', 'a', 'both' or 'core').
        kept: the factors that change from round to round, trained or not; '' for the trained ones.
        exact: what the server ends with is the weighted average of the clients' updates.
        linear: the server needs only a weighted sum of what clients send: what secure aggregation, client-level privacy
            and server optimisers can work with.
        personal: clients keep factors that never leave them; noise on what is shared does not cover these, nor what is
            made of them.
        takes_ranks: clients may have ranks of their own.
        steady: columns keep their meaning from round to round, so that moments may be kept.
        random_init: works with a random ``a`` and an unchanged base weight only.
        summary: one sentence for tables and help.
        up, down, aggregation, privacy, trained_words: what travels each way, how it is put together, what may be said
            about differential privacy, and what is trained where ``trained`` does not say it; for the table of methods.
    """

    name: ClassVar[str]
    trained: ClassVar[str]
    kept: ClassVar[str] = ""
    exact: ClassVar[bool]
    linear: ClassVar[bool] = True
    personal: ClassVar[bool] = False
    takes_ranks: ClassVar[bool] = False
    steady: ClassVar[bool] = True
    random_init: ClassVar[bool] = False
    summary: ClassVar[str]
    up: ClassVar[str]
    down: ClassVar[str]
    aggregation: ClassVar[str] = "average"
    privacy: ClassVar[str] = "sample level; client level"
    trained_words: ClassVar[str] = ""

    def __init__(self, adapters: Adapters, config: Config, clients: int):
        self.adapters, self.config, self.clients = adapters, config, clients
        #: (start, rows, weights) -> the average; replaced where the server adds noise (client-level privacy).
        self.mean: Callable[[Tensor, Tensor, Tensor], Tensor] = weighted_mean

    @property
    def shares_a(self) -> bool:
        """Every client of a round uses the same ``a``, so that all of them can train in one pass."""
        return all(place.tensor != "lora_A" for place in self.adapters.layout.places)

    def trained_in(self, round_number: int) -> str:
        """The factor trained in a round (counted from 0)."""
        return self.trained

    def begin(self) -> ServerState:
        """The state before the first round."""
        with self.whole():
            row = self.adapters.state()
        return ServerState(row)

    def begin_round(self, server: ServerState) -> None:
        """Brings the model to where the round starts: kept factors loaded, the trained one switched on."""
        self.finish(server)
        self.switch(self.trained_in(server.round))

    def start(self, server: ServerState, clients: Sequence[int]) -> Tensor:
        """Rows ``[C,P]`` that the cohort's clients start from."""
        return self.adapters.state().expand(len(clients), -1).clone()

    def mask(self, server: ServerState, clients: Sequence[int]) -> Tensor | None:
        """bool ``[C,P]``, the columns that each client has; None where every client has them all."""
        return None

    def aggregate(self, server: ServerState, clients: Sequence[int], rows: Tensor, weights: Tensor) -> float:
        """Puts the cohort's rows ``[C,P]`` together with ``weights [C]`` (float64, summing to 1), changing ``server``.

        Returns:
            How far the result is from the weighted average of the updates, relative to it (0 where exact).
        """
        self.adapters.load_state_(self.average(server, self.adapters.state(), rows, weights))
        self.keep(server)
        return 0.0

    def average(self, server: ServerState, start: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        """The row that server optimiser and noise make of the cohort's rows, given their ``start``."""
        mean = self.mean(start, rows, weights)
        return server_step(server.tensors, start, mean, self.config.federation, self.adapters.config.trained)

    def finish(self, server: ServerState) -> None:
        """Writes the global parameters into the model, for a round, for evaluation and for saving."""
        with self.whole():
            self.adapters.load_state_(server.row)

    def views(self, server: ServerState) -> Iterator[None]:
        """Writes each model that is to be evaluated into the model in turn; the metrics of several are averaged."""
        self.finish(server)
        yield

    def export(self, server: ServerState) -> None:
        """Prepares the model for saving: afterwards the adapters alone hold everything that was learned."""
        self.finish(server)

    def upload(self, row: Tensor) -> Tensor:
        """The numbers of a client's row ``[P]`` that it sends."""
        return self.adapters.layout.payload(row)

    def received(self, payload: Tensor) -> Tensor:
        """The row ``[P]`` of what :meth:`upload` made of it; columns that were not sent are as in the model."""
        return self.adapters.layout.from_payload(payload)

    def shared(self) -> dict[str, tuple[int, ...]]:
        """Server tensors that clients need beside the row, with their shapes."""
        return {}

    def download(self, server: ServerState) -> Tensor:
        """Everything that a client needs to begin the round, as one flat float32 row: ``server.row`` without padding,
        then the shared tensors.
        """
        with self.whole():
            parts = [self.adapters.layout.payload(server.row)]
        for name, shape in self.shared().items():
            parts.append(server.tensors.get(name, torch.zeros(shape)).reshape(-1).to(parts[0]))
        return torch.cat(parts)

    def adopt(self, server: ServerState, numbers: Tensor) -> None:
        """Takes what :meth:`download` made of the server's state into a client's ``server``.

        Raises:
            ValueError: the wrong count of numbers: server and client differ in method, model or adapters.
        """
        with self.whole():
            layout = self.adapters.layout
            wanted = [layout.size, *(math.prod(shape) for shape in self.shared().values())]
            if numbers.numel() != sum(wanted):
                raise ValueError(
                    f"the server sent {numbers.numel()} numbers, {self.name} on this model takes {sum(wanted)}; give "
                    "server and clients the same configuration"
                )
            row, *tensors = numbers.split(wanted)
            server.row = layout.from_payload(row)
        for (name, shape), tensor in zip(self.shared().items(), tensors, strict=True):
            like = server.tensors.get(name, tensor)
            server.tensors[name] = tensor.reshape(shape).to(like.dtype)

    def remember(self, server: ServerState, client: int, row: Tensor) -> None:
        """Keeps what a client does not share of the row ``[P]`` that it ended at (really: at the client)."""

    def fingerprint(self) -> str:
        """Digest of the frozen factors that every client must share and that do not travel."""
        digest = hashlib.sha256()
        for name, layer in sorted(self.adapters.layers.items()):
            digest.update(f"{name} {tuple(layer.lora_B.shape)} {tuple(layer.lora_A.shape)}".encode())
            if (self.kept or self.trained) in ("b", "core"):
                digest.update(layer.lora_A.detach().cpu().float().numpy().tobytes())
            if self.trained == "core":
                digest.update(layer.lora_B.detach().cpu().float().numpy().tobytes())
        return digest.hexdigest()

    def bytes_up(self, client: int | None = None) -> int:
        """What a client sends in a round; without a client, the most that any sends."""
        return BYTES_PER_NUMBER * self.adapters.layout.size

    def bytes_down(self, server: ServerState, cohort: Sequence[int]) -> int:
        """What all clients together receive in the round about to begin. In the first, a seed stands for what is random
        and frozen.
        """
        return len(cohort) * BYTES_PER_NUMBER * self.adapters.layout.size

    def keep(self, server: ServerState) -> None:
        """Takes the kept factors from the model into ``server.row``."""
        with self.whole():
            server.row = self.adapters.state()

    def switch(self, trained: str) -> None:
        """Trains another factor, where it is another."""
        if self.adapters.config.trained != trained:
            self.adapters.train_factors(trained)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within the block the adapters' columns are those of ``server.row``."""
        trained = self.adapters.config.trained
        self.switch(self.kept or self.trained)
        try:
            yield
        finally:
            self.switch(trained)


def weighted_mean(start: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """``weights @ rows``, summed in float64: float32 ``[P]``."""
    return (weights.to(rows.device, torch.float64) @ rows.double()).to(rows.dtype)
