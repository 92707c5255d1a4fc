"""What a federation would take past this machine, by counting: memory, bytes on the wire, rounds an hour.

Time is that of rounds of a few clients here, continued to many: what a round takes by itself, and what each client
adds. Bytes are those of the method's own byte functions; links are stated, not measured. Memory is counted from the
arrays that a round holds for each drawn client, and what a process holds here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..federated.cohort import Cohort, train_cohort, trains_in_one_pass
from ..federated.experiment import Experiment
from ..federated.strategies import ServerState
from ..federated.strategies.base import weighted_mean
from ..federated.strategies.wire import BYTES_PER_NUMBER
from ..training.optim import Moments
from .measure import peak_bytes, seconds_of, unlimited

_COHORT, _TIMED_ROWS = 16, 8
#: Bytes of a sample (its tokens, its row in tables) and of a client, as 10,000 clients of 20 were found to take.
_OF_A_SAMPLE, _OF_A_LEDGER = 2500, 20_000


@dataclass(frozen=True)
class Network:
    """Links, in bits a second, and seconds.

    Attributes:
        up, down: of a client. server: of the server, each way. link: between processes that share a simulation.
        latency: of a round's messages, beyond their bytes (Flower asks for work every three seconds).
    """

    up: float = 20e6
    down: float = 100e6
    server: float = 10e9
    link: float = 10e9
    latency: float = 6.0


@dataclass(frozen=True)
class Pace:
    """What rounds take here.

    Attributes:
        fixed: seconds that the training of a round takes however many clients there are; client: that each adds;
            alone: of a round of one client.
        row: seconds that the server takes to add up a client's row.
        process_bytes: what this process held at most; row_bytes: what each client of a round adds to it.
    """

    fixed: float
    client: float
    alone: float
    row: float
    process_bytes: int
    row_bytes: int


@dataclass(frozen=True)
class Scale:
    """What a federation of a size takes.

    Attributes:
        clients, drawn, processes: all, those of a round, and the processes (one a device) that simulate them.
        process_bytes: the most that the first process holds, of which ``row_bytes`` are for the drawn clients.
        disk_bytes: what is kept for clients from round to round.
        up, down: bytes of one client in a round. traffic: of all, both ways.
        simulated: seconds of a simulated round. real: of one whose clients sit at their own sites, each as fast as
            this machine with one client.
    """

    clients: int
    drawn: int
    processes: int
    process_bytes: int
    row_bytes: int
    disk_bytes: int
    up: int
    down: int
    traffic: int
    simulated: float
    real: float


def measure_pace(experiment: Experiment) -> Pace:
    """Times the training of small cohorts of the experiment's own clients; nothing is charged, written or kept."""
    server, device = experiment.strategy.begin(), experiment.engine.device
    most = min(_COHORT, len(experiment.participants))
    few = min(4, most)
    alone, some, many = (seconds_of(_round_of(experiment, server, count), device) for count in (1, few, most))
    client = (many - some) / (most - few) if most > few else some / few
    rows = server.row.repeat(_TIMED_ROWS, 1)
    weights = torch.full((_TIMED_ROWS,), 1 / _TIMED_ROWS, dtype=torch.float64)
    added = seconds_of(lambda: weighted_mean(server.row, rows, weights), device) / _TIMED_ROWS
    held = peak_bytes(device)
    return Pace(max(0.0, some - few * client), max(client, 0.0), alone, added, held, _bytes_of_a_row(experiment))


def at_scale(
    experiment: Experiment, pace: Pace, clients: int, drawn: int, processes: int = 1, network: Network = Network()
) -> Scale:
    """Continues what was measured to another size, clients of as many samples as the experiment's.

    Args:
        experiment: of the method. pace: from :func:`measure_pace`.
        clients, drawn: of the federation, and of a round. processes: that share the simulation, each on a device as
            fast as this one.

    Raises:
        ValueError: a size below 1, or more drawn than there are.
    """
    if not 1 <= drawn <= clients or processes < 1:
        raise ValueError(
            f"clients={clients}, drawn={drawn}, processes={processes}: 1 ≤ drawn ≤ clients and a process are needed"
        )
    strategy, server = experiment.strategy, experiment.strategy.begin()
    up, down = strategy.wire.bytes_up(server), strategy.wire.bytes_down(server, range(drawn)) // drawn
    busiest = math.ceil(drawn / processes)
    row = BYTES_PER_NUMBER * server.row.numel()
    exchanged = 0.0 if processes == 1 else 8 * row * (drawn + busiest) / network.link
    trained = pace.fixed + busiest * pace.client
    aggregated = drawn * pace.row
    a_client = 8 * down / network.down + pace.alone + 8 * up / network.up
    at_server = 8 * drawn * max(up, down) / network.server
    kept = strategy.personal + (len(_moments(experiment)) if experiment.config.optimizer.keep_moments else 0)
    return Scale(
        clients=clients,
        drawn=drawn,
        processes=processes,
        process_bytes=pace.process_bytes + drawn * pace.row_bytes + clients * _bytes_of_a_client(experiment),
        row_bytes=drawn * pace.row_bytes,
        disk_bytes=2 * kept * clients * row,
        up=up,
        down=down,
        traffic=drawn * (up + down),
        simulated=trained + exchanged + aggregated,
        real=network.latency + max(a_client, at_server) + aggregated,
    )


def _round_of(experiment: Experiment, server: ServerState, count: int) -> Callable[[], None]:
    """The training of a round of ``count`` clients, from copies of all that it changes."""

    def train() -> None:
        copies = [unlimited(client) for client in experiment.participants[:count]]
        steps = experiment.config.federation.local_steps
        experiment.strategy.load(server, trains=True)
        rows = experiment.strategy.start(server, [client.client_id for client in copies])
        moments = Moments.zeros(experiment.config.optimizer, count, rows.shape[1], rows.device)
        train_cohort(experiment, server, Cohort(copies, [steps] * count, [True] * count), rows, moments)

    return train


def _moments(experiment: Experiment) -> list[str]:
    """Names of the moments that are as wide as a row."""
    zeros = Moments.zeros(experiment.config.optimizer, 1, 1).tensors()
    return [name for name, value in zeros.items() if value.dim() == 2]


def _bytes_of_a_row(experiment: Experiment) -> int:
    """What a round holds for each drawn client: where it starts and ends, what arrives, its moments, and, where all
    train in one pass, its clipped sum in float64.
    """
    numbers = experiment.strategy.begin().row.numel()
    arrays = 2 + len(_moments(experiment))
    summed = 8 if trains_in_one_pass(experiment, 2) else 0
    return numbers * (BYTES_PER_NUMBER * arrays + summed)


def _bytes_of_a_client(experiment: Experiment) -> int:
    """What every client of the federation takes, drawn or not: its samples' tokens and texts, its ledger."""
    each = sum(len(client.samples) for client in experiment.participants) / len(experiment.participants)
    return int(_OF_A_SAMPLE * each + _OF_A_LEDGER)
