"""What a federation would take past this machine, by counting: memory, bytes on the wire, rounds an hour.

Time is that of rounds of a few clients here, continued to many: what a round takes by itself, what each client that is
drawn adds, what is written down of each that there is, and evaluations. Bytes are those of the method's own byte
functions; links are stated, not measured. Memory is counted from the arrays that a round holds for each drawn client,
and what a process holds here.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..config import ConfigError
from ..federated.checkpoint import Checkpoint
from ..federated.cohort import Cohort, tokens_of_a_batch, train_cohort, trains_in_one_pass
from ..federated.experiment import Experiment
from ..federated.ledgers import ledgers_of
from ..federated.payload import through_the_wire
from ..federated.strategies import ServerState
from ..federated.strategies.base import weighted_mean
from ..federated.strategies.residual import MergesIntoBase
from ..federated.strategies.wire import BYTES_PER_NUMBER
from ..runs.folder import CHECKPOINT, append_row
from ..training.optim import Moments
from ..training.participant import Participant
from .measure import charged_elsewhere, evaluation_seconds, peak_bytes, seconds_of, unlimited

_APART, _MOST_TOGETHER, _BATCHES, _TIMED_ROWS, _BOOKS = (2, 6), 512, 4, 8, 1000
#: Bytes of a sample (its tokens, its row in tables) and of a client, as 10,000 clients of 20 were found to take.
_OF_A_SAMPLE, _OF_A_LEDGER = 2500, 20_000


@dataclass(frozen=True)
class Network:
    """Links, in bits a second, and seconds.

    Attributes:
        up, down: of a client. server: of the server, each way. link: between processes that share a simulation.
        latency: of a round's messages, beyond their bytes (a site looks for them every three seconds, or sooner).
    """

    up: float = 20e6
    down: float = 100e6
    server: float = 10e9
    link: float = 10e9
    latency: float = 3.0


@dataclass(frozen=True)
class Pace:
    """What rounds take here.

    Attributes:
        fixed: seconds that the training of a round takes however many clients there are; client: that each adds;
            alone: of a round of one client.
        row: seconds that the server takes to unpack a client's row and add it up.
        written: seconds in which a round is counted and written down; books: that each client of the federation, drawn
            or not, adds to them.
        evaluation: seconds of an evaluation of one model.
        process_bytes: what this process held at most; row_bytes: what each client of a round adds to it.
    """

    fixed: float
    client: float
    alone: float
    row: float
    written: float
    books: float
    evaluation: float
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
        simulated: seconds from one simulated round to the next. real: from one to the next of a federation whose
            clients sit at their own sites, each as fast as this machine with one client.
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
    few, many = timed_cohorts(experiment)
    alone, some, all_of_them = (seconds_of(_round_of(experiment, server, count), device) for count in (1, few, many))
    client = max(0.0, all_of_them - some) / (many - few) if many > few else some / few
    rows = server.row.repeat(_TIMED_ROWS, 1)
    weights = torch.full((_TIMED_ROWS,), 1 / _TIMED_ROWS, dtype=torch.float64)

    def add_up() -> None:
        arrived = through_the_wire(experiment.config, experiment.strategy, server, [0] * _TIMED_ROWS, rows)
        weighted_mean(server.row, arrived, weights)

    added = seconds_of(add_up, device) / _TIMED_ROWS
    one, many_more = (seconds_of(_books_of(experiment, server, count), device) for count in (1, 1 + _BOOKS))
    return Pace(
        fixed=max(0.0, some - few * client),
        client=client,
        alone=alone,
        row=added,
        written=one,
        books=max(0.0, many_more - one) / _BOOKS,
        evaluation=evaluation_seconds(experiment),
        process_bytes=peak_bytes(device),
        row_bytes=_bytes_of_a_row(experiment),
    )


def at_scale(
    experiment: Experiment, pace: Pace, clients: int, drawn: int, processes: int = 1, network: Network = Network()
) -> Scale:
    """Continues what was measured to another size, clients of as many samples as the experiment's.

    Args:
        experiment: of the method. pace: from :func:`measure_pace`.
        clients, drawn: of the federation, and of a round. processes: that share the simulation, each on a device as
            fast as this one.

    Raises:
        ValueError: a size below 1, or more drawn than there are. ConfigError: the method's downloads grow with cohorts.
    """
    if not 1 <= drawn <= clients or processes < 1:
        raise ValueError(
            f"clients={clients}, drawn={drawn}, processes={processes}: 1 ≤ drawn ≤ clients and a process are needed"
        )
    strategy, server = experiment.strategy, experiment.strategy.begin()
    up, down = _bytes_of_a_round(experiment, server, drawn)
    busiest = math.ceil(drawn / processes)
    row = BYTES_PER_NUMBER * server.row.numel()
    exchanged = 0.0 if processes == 1 else 8 * row * (drawn + busiest) / network.link
    trained = pace.fixed + busiest * pace.client
    aggregated, evaluated = drawn * pace.row, pace.evaluation / experiment.config.federation.evaluate_every
    views = clients if strategy.personal else 1  # in the end each has been drawn, and has a model of its own
    a_client = 8 * down / network.down + pace.alone + 8 * up / network.up
    at_server = 8 * drawn * max(up, down) / network.server
    kept = strategy.personal + (experiment.config.federation.payload == "top-k")
    kept += len(_moments(experiment)) if experiment.config.optimizer.keep_moments else 0
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
        simulated=trained + exchanged + aggregated + views * evaluated + pace.written + clients * pace.books,
        real=network.latency + max(a_client, at_server) + aggregated + evaluated,
    )


def _bytes_of_a_round(experiment: Experiment, server: ServerState, drawn: int) -> tuple[int, int]:
    """Bytes of one client, up and down, in the mean of rounds after the first."""
    strategy, federation = experiment.strategy, experiment.config.federation
    if isinstance(strategy, MergesIntoBase):
        raise ConfigError(
            f"federation.strategy={strategy.name!r}: what every client of the federation receives grows with each "
            "round's cohort, which is not counted here; plan with another method"
        )
    rounds = [replace(server, round=number) for number in range(1, 1 + 2 * federation.refactor_every)]
    cohort = [number % len(experiment.participants) for number in range(drawn)]
    up = sum(experiment.bytes_up(later) for later in rounds)
    down = sum(strategy.wire.bytes_down(later, cohort) for later in rounds)
    return up // len(rounds), down // (len(rounds) * drawn)


def timed_cohorts(experiment: Experiment) -> tuple[int, int]:
    """Two cohorts between which time grows as it goes on growing: by whole physical batches where these are shared."""
    few, many = _APART
    if trains_in_one_pass(experiment, 2):
        few = min(_MOST_TOGETHER, math.ceil((experiment.engine.token_budget or 1) / tokens_of_a_batch(experiment)))
        many = _BATCHES * few
    if experiment.strategy.takes_ranks:  # nobody but the experiment's own clients has a rank
        many = min(many, len(experiment.participants))
        few = min(few, max(1, many - 1))
    return few, many


def _copies(experiment: Experiment, count: int, steps: int = 0) -> list[Participant]:
    """As many clients: the experiment's own, again and again, each with an id and a ledger of its own, after ``steps``
    steps.
    """
    found = []
    for i in range(count):
        client = unlimited(experiment.participants[i % len(experiment.participants)])
        ledger = client.ledger and replace(client.ledger, client_id=i, steps_taken=steps)
        found.append(replace(client, client_id=i, ledger=ledger, steps_taken=steps))
    return found


def _round_of(experiment: Experiment, server: ServerState, count: int) -> Callable[[], None]:
    """The training of one round after another of ``count`` clients, from copies of all that it changes. Each draws
    other samples, in batches of other shapes, as rounds do; correlated noise begins anew.
    """
    strategy, steps = experiment.strategy, experiment.config.federation.local_steps
    is_independent = experiment.config.privacy.mechanism == "independent"
    rounds: Iterator[int] = itertools.count() if is_independent else itertools.repeat(0)

    def train() -> None:
        copies = _copies(experiment, count, steps * next(rounds))
        strategy.load(server, trains=True)
        rows = strategy.start(server, range(count))
        moments = Moments.zeros(experiment.config.optimizer, count, rows.shape[1], rows.device)
        cohort = Cohort(copies, [steps] * count, [True] * count)
        with charged_elsewhere(experiment):
            train_cohort(experiment, server, cohort, rows, moments)

    return train


def _books_of(experiment: Experiment, server: ServerState, count: int) -> Callable[[], None]:
    """What is counted and written down of a round of a federation of ``count`` clients: each one's ε after a number of
    steps that nobody had taken yet, and the checkpoint.
    """
    copies, level, config = _copies(experiment, count), experiment.client_level, experiment.config
    if level is not None:
        level = replace(level, ledger=replace(level.ledger, max_steps=10**6, target_epsilon=None))
    ledgers = ledgers_of(copies, level)

    def write() -> None:
        for ledger in ledgers.values():
            if ledger.steps_left:  # of a short run with correlated noise, whose ε does not change within a release
                ledger.charge()
        with tempfile.TemporaryDirectory() as place:
            append_row(Path(place), {"epsilon_per_client": {name: one.epsilon() for name, one in ledgers.items()}})
            Checkpoint(Path(place, CHECKPOINT), config, server, copies, level).save()

    return write


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
