"""The round loop: draw a cohort, train it, aggregate, evaluate, write down; interruptible and resumable at every
round.
"""

from __future__ import annotations

import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..adapters import CheckpointError
from ..config import Config
from ..files.locks import locked
from ..privacy.accounts import ACCOUNT
from ..runs.folder import CHECKPOINT, LEDGERS, RunResult, append_row, completed_rows, write_rows
from ..runs.trackers import Trackers, check_trackers
from ..training.report import TrainingReport
from ..training.workers import find_workers
from .accounts import open_run_accounts
from .averaging import average_in
from .checkpoint import Checkpoint
from .checks import check_single
from .cohort import Cohort, client_weights, draw_cohort, train_cohort
from .compared import compared
from .experiment import Experiment, build
from .payload import through_the_wire
from .records import finish_folder, metrics_row, open_folder, spent_until_now
from .robust import are_enough
from .shared_rounds import draw_for_all, holders, share_server, share_start, train_shared
from .strategies import Answers, ServerState

#: Seconds that a process may take to end before another may train in its folder.
_PATIENCE = 2.0


@dataclass
class Run:
    """A run in progress: what it is made of, where it stands, its folder and checkpoint, who is told of rounds, and the
    rows of ``metrics.jsonl``.
    """

    experiment: Experiment
    server: ServerState
    folder: Path
    checkpoint: Checkpoint
    trackers: Trackers
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, experiment: Experiment, folder: Path, resume: bool) -> Run:
        """Begins a run, or continues it after the last completed round.

        Raises:
            CheckpointError, LedgerMismatch: nothing that this run can continue from.
        """
        trackers, config = Trackers(experiment.config, folder), experiment.config
        server, frozen = experiment.strategy.begin(), experiment.strategy.wire.fingerprint()
        checkpoint = Checkpoint(
            folder / CHECKPOINT, config, server, experiment.participants, experiment.client_level, frozen
        )
        run = cls(experiment, server, folder, checkpoint, trackers)
        run.rows = experiment.workers.from_lead(partial(run._begin, resume))
        share_start(experiment, server, frozen)
        return run

    def _begin(self, resume: bool) -> list[dict[str, Any]]:
        """Takes the run up where its folder says; the rows of the rounds that are completed."""
        experiment, folder, path = self.experiment, self.folder, self.checkpoint.path
        if resume and path.exists():
            self.checkpoint.load()
        named = experiment.config.privacy.ledger
        open_run_accounts(experiment, folder / LEDGERS, path.with_name(ACCOUNT), resume, named)
        open_folder(experiment, folder)
        rows = completed_rows(folder, self.server.round)
        write_rows(folder, rows)
        return rows

    def is_over(self) -> bool:
        """Whether all rounds are done, or (which it warns of) the population's ledger allows no other: rounds that were
        killed have been charged, too.
        """
        done, rounds = self.server.round, self.experiment.config.federation.rounds
        level = self.experiment.client_level
        if done < rounds and level is not None and level.ledger.steps_left == 0:
            warnings.warn(
                f"the population's privacy budget ends the run after {done} of {rounds} rounds: rounds that were "
                "interrupted have been charged as well",
                stacklevel=2,
            )
            return True
        return done >= rounds

    def complete_round(self, row: dict[str, Any]) -> None:
        """Writes down a round that was run."""
        self.rows.append(row)
        # Rows first: one that the checkpoint does not cover is dropped on resume, a lost one would stay lost.
        append_row(self.folder, row)
        self.checkpoint.save()
        self.trackers.log(row)

    def finish(self) -> RunResult:
        """Writes down everything else, after the last round."""
        rows = self.rows
        if rows:
            last = rows[-1] | spent_until_now(self.experiment)  # with rounds that were charged and killed thereafter
            if not last["metrics"]:  # spent budgets ended the run before the round that was to be evaluated
                last["metrics"] = evaluate_views(self.experiment, self.server)
            if last != rows[-1]:
                rows[-1] = last
                write_rows(self.folder, rows)
        self.trackers.close()
        return finish_folder(self.experiment, self.server, self.folder, rows)


def simulate(config: Config, folder: str | Path, resume: bool = False, progress: bool = True) -> RunResult:
    """Runs one method and writes its folder. The processes of an initialised ``torch.distributed`` group share the
    work: all call this alike, and the first of them writes.

    Args:
        config: without ``methods`` (see ``Config.runs``).
        folder: made if missing; must hold no other run unless ``resume``.
        resume: continue after the last completed round; the result is bit-identical to an uninterrupted run (seeded
            noise) on as many processes, and the same to rounding on another number of them.
        progress: show a bar with the time left.

    Raises:
        ConfigError, DataError, PartitionError: before anything is written. CheckpointError, LedgerMismatch: nothing to
        resume, or something else, or another process trains in the folder. KeyboardInterrupt leaves the last completed
        round on disk. WorkersLost: another process ended. LeadStopped: the first one raised one of these.
    """
    folder, workers = Path(folder), find_workers()
    workers.from_lead(partial(check_beginning, config, folder, resume))
    experiment = build(config)
    if experiment.engine.is_sharded:
        workers = holders(experiment, workers)
    experiment.workers = workers
    with ExitStack() as held:
        workers.from_lead(partial(hold_folder, folder, resume, held))
        run = Run.open(experiment, folder, resume)
        experiment.baselines = workers.from_lead(partial(compared, experiment, folder))
        with tqdm(
            total=config.federation.rounds,
            initial=run.server.round,
            desc=config.federation.strategy,
            unit="round",
            disable=not (progress and workers.leads),
        ) as bar:
            while not workers.from_lead(run.is_over):
                row = run_round(experiment, run.server)
                workers.from_lead(partial(run.complete_round, row))
                shown = {k: f"{v:.4g}" for k, v in row["metrics"].items() if k in ("accuracy", "loss")}
                bar.set_postfix(shown | {"ε": row["epsilon"]})
                bar.update()
        return workers.from_lead(run.finish)


def hold_folder(folder: Path, resume: bool, held: ExitStack) -> None:
    """Keeps other processes from training in a folder until ``held`` is closed, or this process ends, however it ends.

    Raises:
        CheckpointError: another process trains there, or it holds a run that is not to be continued.
    """
    try:
        held.enter_context(locked((folder / CHECKPOINT).with_name("run"), _PATIENCE))
    except TimeoutError:
        raise CheckpointError(
            f"{folder}: another process is training in this folder; wait until it is done, end it, or choose another "
            "folder (--output)"
        ) from None
    check_unused(folder, resume)


def check_beginning(config: Config, folder: Path, resume: bool) -> None:
    """What is refused before anything is loaded or written, whoever computes the rounds.

    Raises:
        ConfigError: several runs in one configuration, or a tracker that is not installed. CheckpointError: see
        :func:`check_unused`.
    """
    check_single(config)
    check_trackers(config)
    check_unused(folder, resume)


def check_unused(folder: Path, resume: bool) -> None:
    """Refuses a folder that holds a run, unless that is to be continued.

    Raises:
        CheckpointError: with the remedy.
    """
    if not resume and ((folder / CHECKPOINT).exists() or (folder / LEDGERS).exists()):
        raise CheckpointError(
            f"{folder} holds a run already; continue it with resume (--resume), or choose another folder"
        )


@dataclass
class OpenRound:
    """A communication round whose clients have been drawn and sent what they start from.

    Attributes:
        cohort: who trains. rows: float32 ``[C,P]``, changed by training. bytes_up, bytes_down: what travels.
    """

    cohort: Cohort
    rows: Tensor
    bytes_up: int
    bytes_down: int


def run_round(experiment: Experiment, server: ServerState) -> dict[str, Any]:
    """One communication round; changes ``server`` and returns the row of ``metrics.jsonl``."""
    if experiment.workers.size > 1:
        return _run_shared_round(experiment, server)
    started = time.perf_counter()
    opened = open_round(experiment, server)
    report = train_cohort(experiment, server, opened.cohort, opened.rows)
    return close_round(experiment, server, opened, report, time.perf_counter() - started)


def _run_shared_round(experiment: Experiment, server: ServerState) -> dict[str, Any]:
    """As :func:`run_round`, by several processes: all train, the first one draws and aggregates."""
    started, workers = time.perf_counter(), experiment.workers
    opened = open_round(experiment, server, draw_for_all(experiment, server.round))
    if experiment.strategy.personal:  # what clients keep from round to round the first process alone knows
        opened.rows = workers.from_lead(opened.rows.cpu).to(server.row.device)
    report = train_shared(experiment, server, opened.cohort, opened.rows)
    seconds = time.perf_counter() - started
    row = workers.from_lead(partial(close_round, experiment, server, opened, report, seconds))
    share_server(workers, server)
    return row


def open_round(experiment: Experiment, server: ServerState, cohort: Cohort | None = None) -> OpenRound:
    """Draws the cohort, unless it is given, and brings the model to where the round starts."""
    strategy, cohort = experiment.strategy, cohort or draw_cohort(experiment, server.round)
    strategy.load(server, trains=True)
    ids = cohort.ids
    up = sum(experiment.bytes_up(server, i) for i, arrives in zip(ids, cohort.arrives, strict=True) if arrives)
    return OpenRound(cohort, strategy.start(server, ids), up, strategy.wire.bytes_down(server, ids))


def close_round(
    experiment: Experiment, server: ServerState, opened: OpenRound, report: TrainingReport, seconds: float
) -> dict[str, Any]:
    """Aggregates and evaluates; changes ``server`` and returns the row of ``metrics.jsonl``.

    Args:
        report: of the cohort's training.
        seconds: what the round took until now.
    """
    started = time.perf_counter()
    config, cohort, ids = experiment.config, opened.cohort, opened.cohort.ids
    rows = through_the_wire(config, experiment.strategy, server, ids, opened.rows, cohort.arrives)
    if experiment.client_level is not None:  # whether an update is finite is private: what is not counts as none
        rows = torch.where(rows.isfinite().all(1, keepdim=True), rows, experiment.strategy.start(server, ids))
    finite = rows.isfinite().all(1).tolist()
    kept = [i for i, arrives in enumerate(cohort.arrives) if arrives and finite[i]]
    report.rejected = [ids[i] for i, arrives in enumerate(cohort.arrives) if arrives and not finite[i]]
    report.dropped = [ids[i] for i, arrives in enumerate(cohort.arrives) if not arrives]
    for i, arrives in enumerate(cohort.arrives):
        if finite[i] and not arrives:  # what it does not share is with it, whatever arrived
            experiment.strategy.remember(server, ids[i], rows[i])
    answers = None
    if kept or experiment.client_level is not None:
        weights = client_weights([cohort.clients[i] for i in kept], config)
        answers = Answers([ids[i] for i in kept], rows[kept], weights, experiment.mean)
    gap, metrics = end_round(experiment, server, answers)
    seconds += time.perf_counter() - started
    return metrics_row(experiment, server, report, metrics, gap, seconds, opened.bytes_up, opened.bytes_down)


def end_round(experiment: Experiment, server: ServerState, answers: Answers | None) -> tuple[float, dict[str, float]]:
    """Takes a round's answers (None: there are none) into ``server``, counts the round, and evaluates where it is due.

    Returns:
        what ``Strategy.aggregate`` returned, and the metrics.
    """
    federation, gap = experiment.config.federation, 0.0
    if answers is not None and not are_enough(federation, len(answers.clients)):
        for client, row in zip(answers.clients, answers.rows, strict=True):
            experiment.strategy.remember(server, client, row)
    elif answers is not None:
        gap = experiment.strategy.aggregate(server, answers)
        if federation.average_from is not None:
            average_in(server, federation)
    server.round += 1
    is_due = server.round == federation.rounds or server.round % federation.evaluate_every == 0
    return gap, evaluate_views(experiment, server) if is_due else {}


def evaluate_views(experiment: Experiment, server: ServerState) -> dict[str, float]:
    """The task's metrics of the global model; the average over clients where each has a model of its own."""
    found: list[tuple[dict[str, float], int]] = []
    for row, clients in experiment.strategy.views(server):
        experiment.strategy.load(server, row)
        found.append((experiment.evaluate(), clients))
    total = sum(clients for _, clients in found)
    return {name: sum(clients * each[name] for each, clients in found) / total for name in found[0][0]}
