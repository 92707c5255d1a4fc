"""The round loop: draw a cohort, train it, aggregate, evaluate, write down; interruptible and resumable at every
round.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..adapters import CheckpointError
from ..config import Config
from ..evaluation import evaluate_answers, evaluate_examples
from ..privacy.engine import TrainingReport
from .checkpoint import load_checkpoint, resume_ledgers, save_checkpoint, save_ledgers
from .cohort import client_weights, draw_cohort, train_cohort
from .experiment import Experiment, build, evaluation_split
from .records import metrics_row
from .run_folder import CHECKPOINT, LEDGERS, RunResult, completed_rows, finish_folder, open_folder, write_rows
from .strategies import ServerState


def simulate(config: Config, folder: Path, resume: bool = False, progress: bool = True) -> RunResult:
    """Runs one method and writes its folder.

    Args:
        config: without ``methods`` (see ``Config.runs``).
        folder: made if missing; must hold no other run unless ``resume``.
        resume: continue after the last completed round; the result is bit-identical to an uninterrupted run (seeded
            noise).
        progress: show a bar with the time left.

    Raises:
        ConfigError, DataError, PartitionError: before anything is written. CheckpointError, LedgerMismatch: nothing to
        resume, or something else. KeyboardInterrupt leaves the last completed round on disk.
    """
    checkpoint = folder / CHECKPOINT
    is_secure = config.privacy.noise == "secure"
    if not resume and (checkpoint.exists() or (folder / LEDGERS).exists()):
        raise CheckpointError(
            f"{folder} holds a run already; continue it with resume (--resume), or choose another folder"
        )
    experiment = build(config)
    server = experiment.strategy.begin()
    if resume and checkpoint.exists():
        load_checkpoint(
            checkpoint, config, server, experiment.participants, experiment.ledgers, experiment.client_level
        )
    if resume and is_secure:
        resume_ledgers(folder / LEDGERS, experiment.ledgers)
    open_folder(experiment, folder)
    if is_secure:
        experiment.on_charge(lambda ledgers: save_ledgers(folder / LEDGERS, ledgers))
    rows = completed_rows(folder, server.round)
    with tqdm(
        total=config.federation.rounds,
        initial=server.round,
        desc=config.federation.strategy,
        unit="round",
        disable=not progress,
    ) as bar:
        while server.round < config.federation.rounds and not _is_spent(experiment, server):
            row = run_round(experiment, server)
            rows.append(row)
            # Rows first: one that the checkpoint does not cover is dropped on resume, a lost one would stay lost.
            write_rows(folder, rows)
            save_checkpoint(
                checkpoint, config, server, experiment.participants, experiment.ledgers, experiment.client_level
            )
            bar.set_postfix(
                {k: f"{v:.4g}" for k, v in row["metrics"].items() if k in ("accuracy", "loss")} | {"ε": row["epsilon"]}
            )
            bar.update()
    if rows and not rows[-1]["metrics"]:  # spent budgets ended the run before the round that was to be evaluated
        rows[-1]["metrics"] = evaluate_views(experiment, server)
        write_rows(folder, rows)
    experiment.strategy.export(server)
    return finish_folder(experiment, folder, rows)


def run_round(experiment: Experiment, server: ServerState) -> dict[str, Any]:
    """One communication round; changes ``server`` and returns the row of ``metrics.jsonl``."""
    started = time.perf_counter()
    config, strategy = experiment.config, experiment.strategy
    cohort = draw_cohort(experiment, server.round)
    strategy.begin_round(server)
    rows = strategy.start(server, cohort.ids)
    down = strategy.bytes_down(server, cohort.ids)
    up = sum(strategy.bytes_up(c) for c, arrives in zip(cohort.ids, cohort.arrives, strict=True) if arrives)
    report = train_cohort(experiment, server, cohort, rows) if len(cohort) else TrainingReport()
    finite = rows.isfinite().all(1).tolist()
    kept = [i for i, arrives in enumerate(cohort.arrives) if arrives and finite[i]]
    report.rejected = [cohort.ids[i] for i, arrives in enumerate(cohort.arrives) if arrives and not finite[i]]
    report.dropped = [cohort.ids[i] for i, arrives in enumerate(cohort.arrives) if not arrives]
    gap = 0.0
    if kept or experiment.client_level is not None:
        clients = [cohort.clients[i] for i in kept]
        gap = strategy.aggregate(server, [p.client_id for p in clients], rows[kept], client_weights(clients, config))
    server.round += 1
    metrics = {}
    if server.round == config.federation.rounds or server.round % config.federation.evaluate_every == 0:
        metrics = evaluate_views(experiment, server)
    seconds = time.perf_counter() - started
    return metrics_row(experiment, server, report, metrics, gap, seconds, up, down)


def evaluate_views(experiment: Experiment, server: ServerState) -> dict[str, float]:
    """The task's metrics of the global model; the average over clients where each has a model of its own."""
    found: list[dict[str, float]] = []
    config, split = experiment.config.data, evaluation_split(experiment.config, experiment.data)
    for _ in experiment.strategy.views(server):
        metrics = evaluate_examples(
            experiment.engine.model,
            experiment.evaluation,
            experiment.task,
            experiment.engine.device,
            config.max_evaluation_samples,
        )
        found.append(metrics | evaluate_answers(experiment.loaded, experiment.data, config, split))
    return {name: sum(each[name] for each in found) / len(found) for name in found[0]}


def _is_spent(experiment: Experiment, server: ServerState) -> bool:
    """Whether the population's ledger allows no further round: rounds that were killed have been charged, too."""
    client_level = experiment.client_level
    if client_level is None or client_level.ledger.steps_left > 0:
        return False
    warnings.warn(
        f"the population's privacy budget ends the run after {server.round} of {experiment.config.federation.rounds} "
        "rounds: rounds that were interrupted have been charged as well",
        stacklevel=2,
    )
    return True
