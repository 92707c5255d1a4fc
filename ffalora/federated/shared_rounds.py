"""A run that several processes share: what all of them must hold, and who trains which clients of a round.

The first process alone draws cohorts, aggregates, evaluates, charges and writes; the others hold the same server state
and the same clients. A round's clients are dealt out to the processes where each has about as much to do and where
nothing has to be charged on the disk before a step; else all processes share every step. The result is the same, to
the rounding of float64 sums and of batches of other shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from ..training.optim import Moments
from ..training.participant import Participant
from ..training.report import TrainingReport
from ..training.workers import ALONE, ShardHolders, Workers
from .cohort import Cohort, draw_cohort, keep_moments, kept_moments, train_cohort
from .experiment import Experiment
from .strategies import ServerState

#: Clients are dealt out where the busiest process has at most this much more to do than all have on average.
_UNEVEN = 1.25


def holders(experiment: Experiment, workers: Workers) -> ShardHolders:
    """The processes of a run whose base is sharded."""
    loaded, data, device = experiment.loaded, experiment.engine.data, experiment.engine.device
    inputs = {name: value.to(device) for name, value in data.collate([0])[0].items()}

    @torch.no_grad()
    def follow() -> None:
        loaded.model(**inputs)

    root = next(module for module in loaded.model.modules() if isinstance(module, FSDPModule))
    return ShardHolders(workers.rank, workers.size, root=root, follow=follow)


def share_start(experiment: Experiment, server: ServerState, frozen: str) -> None:
    """Gives every process the first one's server state, clients and ledgers, as a run begins or goes on.

    Args:
        frozen: digest of the frozen factors here.

    Raises:
        ValueError: a process holds other frozen factors: its sums would belong to another model.
    """
    workers = experiment.workers
    if workers.size == 1:
        return
    others = [rank for rank, each in enumerate(workers.gather(frozen)) if each != frozen]
    if others:
        raise ValueError(
            f"processes {others} hold other frozen factors than process {workers.rank}; give all the same model, "
            "adapter.seed and dtypes"
        )
    share_server(workers, server)
    engine = experiment.engine  # all decide alike what fits into one pass, whoever has least memory
    engine.token_budget = min(workers.gather(engine.token_budget or 1))
    carried = workers.same_for_all([_carried(client, "cpu") for client in experiment.participants])
    if not workers.leads:
        for client, theirs in zip(experiment.participants, carried, strict=True):
            vars(client).update(vars(_carried(theirs, server.row.device)) | {"samples": client.samples})


def share_server(workers: Workers, server: ServerState) -> None:
    """Gives every process what the first one made of the round."""
    device = server.row.device
    held = (server.row.cpu(), server.round, {name: value.cpu() for name, value in server.tensors.items()})
    row, server.round, tensors = workers.same_for_all(held)
    server.row, server.tensors = row.to(device), {name: value.to(device) for name, value in tensors.items()}


def draw_for_all(experiment: Experiment, round_number: int) -> Cohort:
    """The cohort that the first process draws, on every process."""

    def drawn() -> tuple[list[int], list[int], list[bool]]:
        cohort = draw_cohort(experiment, round_number)
        return cohort.ids, cohort.steps, cohort.arrives

    ids, steps, arrives = experiment.workers.from_lead(drawn)
    by_id = {client.client_id: client for client in experiment.participants}
    return Cohort([by_id[client_id] for client_id in ids], steps, arrives)


def train_shared(experiment: Experiment, server: ServerState, cohort: Cohort, rows: Tensor) -> TrainingReport:
    """As :func:`~.cohort.train_cohort`, by all processes: each step together, or each its own clients. Moments that are
    kept the first process keeps.
    """
    workers, optimizer = experiment.workers, experiment.config.optimizer
    if optimizer.keep_moments:
        kept = workers.from_lead(lambda: kept_moments(experiment, server, cohort, rows.cpu()).tensors())
        moments = Moments(**{name: value.to(rows.device) for name, value in kept.items()})
    else:
        moments = Moments.zeros(optimizer, len(rows), rows.shape[1], rows.device)
    dealt = dealt_clients(experiment, cohort.clients, cohort.steps)
    experiment.engine.workers = workers if dealt is None else ALONE
    mine = None if dealt is None else dealt == workers.rank
    report = train_cohort(experiment, server, cohort, rows, moments, mine)
    if dealt is not None:
        put_together(workers, dealt, cohort.clients, rows, moments)
    if optimizer.keep_moments and workers.leads:
        keep_moments(server, cohort, moments)
    return report.of_all(workers)


def dealt_clients(experiment: Experiment, clients: Sequence[Participant], steps: Sequence[int]) -> Tensor | None:
    """Which process trains each client of a cohort, int64 ``[C]``: the one with most tokens goes to the process that
    has least to do yet, and so on. None where all processes share every step; a sharded base leaves no choice.

    Args:
        steps: that each client takes, ``[C]``.
    """
    size, privacy = experiment.workers.size, experiment.config.privacy
    is_charged = privacy.at_clients and privacy.is_secure
    if experiment.engine.is_sharded or len(clients) < size or is_charged or privacy.mechanism != "independent":
        return None
    batch, lengths = experiment.config.optimizer.batch, experiment.train.lengths
    work = [
        count * min(batch, len(client.samples)) * float(lengths[client.samples].mean())
        for client, count in zip(clients, steps, strict=True)
    ]
    loads, found = [0.0] * size, torch.zeros(len(work), dtype=torch.int64)
    for row in sorted(range(len(work)), key=lambda row: -work[row]):
        rank = loads.index(min(loads))
        found[row], loads[rank] = rank, loads[rank] + work[row]
    return found if max(loads) <= _UNEVEN * sum(work) / size else None


def put_together(
    workers: Workers, dealt: Tensor, clients: Sequence[Participant], rows: Tensor, moments: Moments
) -> None:
    """Brings every process what the others made of their clients: rows ``[C,P]``, moments, and what it spent and is
    going to be noised with.

    Args:
        dealt: from :func:`dealt_clients`; clients: of the cohort.
    """
    index = (dealt == workers.rank).nonzero().flatten()
    held = {name: value.cpu() for name, value in moments.rows(index).tensors().items()}
    own = [_carried(clients[row], "cpu") for row in index.tolist()]
    for rank, (theirs, tensors, taken) in enumerate(workers.gather((rows[index].cpu(), held, own))):
        if rank == workers.rank:
            continue
        index = (dealt == rank).nonzero().flatten()
        rows[index] = theirs.to(rows.device)
        moments.put_(index, Moments(**{name: value.to(rows.device) for name, value in tensors.items()}))
        for row, client in zip(index.tolist(), taken, strict=True):
            vars(clients[row]).update(vars(_carried(client, rows.device)) | {"samples": clients[row].samples})


def _carried(client: Participant, device: torch.device | str) -> Participant:
    """A client as it goes from process to process: what its noise depends on is on ``device``, its samples stay."""
    noise = None if client.correlated is None else client.correlated.to(device)
    return replace(client, samples=client.samples[:0], correlated=noise)
