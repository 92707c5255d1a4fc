"""What travels between server and clients in a round, and how many bytes that is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...adapters import Adapters
from ...adapters.state import Layout
from ...config import Config
from ..client_states import ClientStates

BYTES_PER_NUMBER = 4
#: Of the server's tensors: the average over rounds, float64 ``[P]``, that is evaluated and saved in place of the row.
AVERAGE = "server.average"
#: Numbers that share a scale in ``federation.payload: int8``.
BLOCK = 64


def payload_bytes(kind: str, numbers: int, share: float = 1.0) -> int:
    """What ``numbers`` take on the wire, without headers.

    Args:
        kind: ``federation.payload``. share: of the numbers, that ``top-k`` sends.
    """
    if kind == "int8":
        return numbers + BYTES_PER_NUMBER * math.ceil(numbers / BLOCK)
    if kind == "top-k":  # how many there are, a bit for each, and two bytes for those that are sent
        return BYTES_PER_NUMBER + math.ceil(numbers / 8) + 2 * largest_moves(numbers, share)
    return numbers * (2 if kind == "float16" else BYTES_PER_NUMBER)


def largest_moves(numbers: int, share: float) -> int:
    """How many of ``numbers`` a client sends with ``federation.payload: top-k``."""
    return math.ceil(share * numbers)


@dataclass
class ServerState:
    """What outlives a round.

    Attributes:
        row: float32 ``[P]``, every global number that changes from round to round, in the columns of
            ``Strategy.layout``.
        round: rounds completed.
        tensors: whatever else is kept (residuals, the server's moments), by name; saved in checkpoints.
        clients: what is kept for single clients (personal factors, their moments).
    """

    row: Tensor
    round: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    clients: ClientStates = field(default_factory=ClientStates)


class Wire:
    """Every client sends the numbers that it trains and receives the row that the server keeps.

    Attributes:
        adapters: what they are called and how large they are; only :meth:`fingerprint` reads values.
        layout: of ``ServerState.row``.
    """

    def __init__(self, adapters: Adapters, layout: Layout, config: Config, clients: int):
        self.adapters, self.layout, self.config, self.clients = adapters, layout, config, clients

    def trained_layout(self, server: ServerState) -> Layout:
        """Whose columns a client's row has in this round."""
        return self.layout

    def upload(self, server: ServerState, row: Tensor) -> Tensor:
        """The numbers of a client's row ``[P]`` that it sends."""
        return self.trained_layout(server).payload(row)

    def received(self, server: ServerState, payload: Tensor) -> Tensor:
        """The row ``[P]`` of what :meth:`upload` made of it; columns that were not sent are the server's.

        Raises:
            ValueError: the wrong count of numbers.
        """
        return self.trained_layout(server).from_payload(payload)

    def shared(self) -> dict[str, tuple[int, ...]]:
        """Server tensors that clients need beside the row, with their shapes."""
        return {}

    def download(self, server: ServerState) -> Tensor:
        """Everything that a client needs to begin the round, as one flat float32 row: ``server.row`` without padding,
        then the shared tensors.
        """
        parts = [self.layout.payload(server.row)]
        for name, shape in self.shared().items():
            parts.append(server.tensors.get(name, torch.zeros(shape)).reshape(-1).to(parts[0]))
        return torch.cat(parts)

    def adopt(self, server: ServerState, numbers: Tensor) -> None:
        """Takes what :meth:`download` made of the server's state into a client's ``server``.

        Raises:
            ValueError: the wrong count of numbers: server and client differ in method, model or adapters.
        """
        wanted = [self.layout.size, *(math.prod(shape) for shape in self.shared().values())]
        if numbers.numel() != sum(wanted):
            raise ValueError(
                f"the server sent {numbers.numel()} numbers, {self.config.federation.strategy} on this model takes "
                f"{sum(wanted)}; give server and clients the same configuration"
            )
        row, *tensors = numbers.split(wanted)
        server.row = self.layout.from_payload(row)
        for (name, shape), tensor in zip(self.shared().items(), tensors, strict=True):
            like = server.tensors.get(name, tensor)
            server.tensors[name] = tensor.reshape(shape).to(like.dtype)

    def fingerprint(self) -> str:
        """Digest of the frozen factors that every client must share and that do not travel."""
        digest = hashlib.sha256()
        travelling = {place.name for place in self.layout.places}
        for name, layer in sorted(self.adapters.layers.items()):
            frozen = dict(layer.module.named_buffers(recurse=False)) | layer.factors()
            for tensor, value in sorted(frozen.items()):
                digest.update(f"{name}.{tensor} {tuple(value.shape)}".encode())
                if f"{name}.{tensor}" not in travelling:
                    digest.update(value.detach().cpu().float().numpy().tobytes())
        return digest.hexdigest()

    def numbers_up(self, server: ServerState, client: int | None = None) -> int:
        """How many numbers a client sends in the round about to begin; without a client, the most that any sends."""
        return self.trained_layout(server).size

    def bytes_up(self, server: ServerState, client: int | None = None) -> int:
        """What those take on the wire, in the format ``federation.payload``."""
        federation = self.config.federation
        return payload_bytes(federation.payload, self.numbers_up(server, client), federation.payload_share)

    def bytes_down(self, server: ServerState, cohort: Sequence[int]) -> int:
        """What all clients together receive in the round about to begin. In the first, a seed stands for what is random
        and frozen.
        """
        return len(cohort) * BYTES_PER_NUMBER * self.trained_layout(server).size

    def head_numbers(self) -> int:
        """Trained numbers outside the adapters."""
        return sum(place.size for place in self.layout.places if not place.tensor.startswith("lora_"))
