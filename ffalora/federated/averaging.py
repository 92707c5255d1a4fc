"""The average of what several rounds ended with: what is evaluated and saved in place of the last round's result.

Training goes on from the last round, and nothing is released that was not: the average is post-processing.
"""

from __future__ import annotations

import torch

from ..config import FederationConfig
from .server_optim import OF_THE_SERVER
from .strategies import ServerState
from .strategies.wire import AVERAGE

_COUNT = f"{OF_THE_SERVER}averaged"


def average_in(server: ServerState, federation: FederationConfig) -> None:
    """Takes the row of the round just aggregated into ``server.tensors``, from the round on that the configuration asks
    for.

    With n rows so far, weights ``1, d, d², …`` from the last one back, ``d = federation.average_decay``::

        mean ← mean + (row - mean)·w,   w = 1/n for d = 1, else (1-d)/(1-dⁿ)

    While every product is linear in the row (``a`` or both frozen factors stay) this is the average of the products.
    What gives columns another meaning forgets the average with the moments (``forget_moments``).
    """
    if server.round < (federation.average_from or 0.0) * federation.rounds:
        return
    row, decay = server.row.double(), federation.average_decay
    count = server.tensors.get(_COUNT, torch.zeros((), dtype=torch.int64)) + 1
    mean = server.tensors.get(AVERAGE, row).to(row.device)
    weight = 1.0 / int(count) if decay == 1.0 else (1.0 - decay) / (1.0 - decay ** int(count))
    server.tensors |= {_COUNT: count, AVERAGE: torch.lerp(mean, row, weight)}
