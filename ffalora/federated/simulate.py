"""The round loop: draw a cohort, train it, aggregate, evaluate, write down; interruptible and resumable at every
round.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..adapters import CheckpointError
from ..bundle import save_bundle
from ..config import Config, to_yaml
from ..evaluation import evaluate_examples
from ..privacy.engine import Participant, TrainingReport
from .checkpoint import load_checkpoint, resume_ledgers, save_checkpoint, save_ledgers, write_atomically
from .experiment import Experiment, build, cohort_of_round
from .records import environment, metrics_row, privacy_statement, summary
from .strategies import ServerState, aggregation_gap

CHECKPOINT, LEDGERS, METRICS = "checkpoint/checkpoint.safetensors", "checkpoint/ledgers", "metrics.jsonl"


@dataclass
class RunResult:
    """A finished run: its folder, its last metrics and costs, and the rows of ``metrics.jsonl``."""

    folder: Path
    summary: dict[str, Any]
    rounds: list[dict[str, Any]]


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
    if checkpoint.exists() and not resume:
        raise CheckpointError(
            f"{folder} holds a run already; continue it with resume (--resume), or choose another folder"
        )
    experiment = build(config)
    server = experiment.strategy.begin()
    if resume and checkpoint.exists():
        load_checkpoint(checkpoint, config, server, experiment.participants)
        resume_ledgers(folder / LEDGERS, experiment.participants)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.yaml", to_yaml(config).encode())
    _write_json(folder / "environment.json", environment(experiment))
    _write_json(folder / "partition.json", experiment.partition_table)
    if config.privacy.noise == "secure":
        experiment.engine.charged = lambda cohort: save_ledgers(folder / LEDGERS, cohort)
    rows = _completed_rows(folder / METRICS, server.round)
    with tqdm(
        total=config.federation.rounds,
        initial=server.round,
        desc=config.federation.strategy,
        unit="round",
        disable=not progress,
    ) as bar:
        while server.round < config.federation.rounds:
            row = run_round(experiment, server)
            rows.append(row)
            save_checkpoint(checkpoint, config, server, experiment.participants)
            write_atomically(folder / METRICS, "".join(json.dumps(r) + "\n" for r in rows).encode())
            bar.set_postfix(
                {k: f"{v:.4g}" for k, v in row["metrics"].items() if k in ("accuracy", "loss")} | {"ε": row["epsilon"]}
            )
            bar.update()
    return _finish(experiment, server, folder, rows)


def run_round(experiment: Experiment, server: ServerState) -> dict[str, Any]:
    """One communication round; changes ``server`` and returns the row of ``metrics.jsonl``."""
    started = time.perf_counter()
    config, strategy = experiment.config, experiment.strategy
    cohort = [p for p in cohort_of_round(config, experiment.participants, server.round) if _may_train(p, config)]
    strategy.begin_round(server)
    down = strategy.bytes_down(server) * len(cohort)
    report, gap = TrainingReport(), 0.0
    if cohort:
        clients = [p.client_id for p in cohort]
        rows = strategy.start(server, clients)
        report = train_cohort(experiment, cohort, rows)
        accepted = rows.isfinite().all(1)
        weights = client_weights(cohort, config)[accepted.cpu()]
        if len(weights):
            kept = [c for c, ok in zip(clients, accepted.tolist(), strict=True) if ok]
            gap = aggregation_gap(experiment.adapters, rows[accepted], weights / weights.sum())
            strategy.aggregate(server, kept, rows[accepted], weights / weights.sum())
        report.rejected = [c for c, ok in zip(clients, accepted.tolist(), strict=True) if not ok]
    server.round += 1
    seconds = time.perf_counter() - started
    last = server.round == config.federation.rounds
    metrics = {}
    if last or server.round % config.federation.evaluate_every == 0:
        strategy.finish(server)
        metrics = evaluate_examples(
            experiment.engine.model,
            experiment.evaluation,
            experiment.task,
            experiment.engine.device,
            config.data.max_evaluation_samples,
        )
    return metrics_row(experiment, server, report, metrics, gap, seconds, strategy.bytes_up() * len(cohort), down)


def train_cohort(experiment: Experiment, cohort: Sequence[Participant], rows: Tensor) -> TrainingReport:
    """Local training of the cohort, from and into ``rows [C,P]``: all clients in one pass, or one after another."""
    federation, engine = experiment.config.federation, experiment.engine
    options = {"steps": federation.local_steps, "mu": federation.prox_mu}
    anchor = rows.clone() if federation.prox_mu else None
    if trains_in_one_pass(experiment, len(cohort)):
        return engine.train(cohort, rows, anchor=anchor, **options)
    report = TrainingReport()
    for i, participant in enumerate(cohort):
        own = rows[i : i + 1]
        report.add(engine.train([participant], own, anchor=None if anchor is None else anchor[i : i + 1], **options))
    return report


def trains_in_one_pass(experiment: Experiment, clients: int) -> bool:
    """Whether a cohort shares forward and backward passes: where the method allows it and single batches would be
    small.
    """
    choice = experiment.config.federation.one_pass
    if clients < 2 or choice == "never" or not experiment.strategy.shares_a:
        return False
    batch_tokens = experiment.config.optimizer.batch_size * float(experiment.train.lengths.mean())
    return choice == "always" or batch_tokens < (experiment.engine.token_budget or 0)


def client_weights(cohort: Sequence[Participant], config: Config) -> Tensor:
    """Weights of the average, float64 ``[C]``, not normalised: data-set sizes or ones."""
    sizes = [len(p.samples) if config.federation.weighting == "size" else 1 for p in cohort]
    return torch.tensor(sizes, dtype=torch.float64)


def _may_train(participant: Participant, config: Config) -> bool:
    """A client whose budget does not cover another round stays out (after a kill in secure mode steps are charged
    twice).
    """
    return participant.ledger is None or participant.ledger.steps_left >= config.federation.local_steps


def _finish(experiment: Experiment, server: ServerState, folder: Path, rows: list[dict[str, Any]]) -> RunResult:
    experiment.strategy.finish(server)
    save_bundle(
        folder / "adapter", experiment.adapters, experiment.loaded, experiment.config, experiment.data.label_names
    )
    statement = privacy_statement(experiment)
    _write_json(folder / "privacy.json", statement.as_dict())
    write_atomically(folder / "privacy.txt", statement.to_text().encode())
    result = summary(experiment, rows)
    _write_json(folder / "summary.json", result)
    return RunResult(folder, result, rows)


def _completed_rows(path: Path, rounds: int) -> list[dict[str, Any]]:
    """Rows of the rounds that the checkpoint covers; a row that was written after it is run again."""
    if not path.exists() or rounds == 0:
        return []
    return [row for row in map(json.loads, path.read_text().splitlines()) if row["round"] <= rounds]


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, default=str).encode())
