"""Several runs of one method on one model: what differs between them is in the clients' rows alone, so that a step of
all is one pass.

Runs of FFA-LoRA with one seed share the base, the frozen ``a``, the partition, the samples of every step and the noise.
Learning rate, clipping norm and noise multiplier belong to a client's row (``Participant``), so runs that differ in
these are more rows of one cohort. Each ends as it would have ended alone, to rounding: the factors of the other rows
do not enter a row's gradient.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from ..config import Config
from ..runs.folder import RunResult
from ..training.optim import Moments
from ..training.report import TrainingReport
from ..training.workers import find_workers
from .batch import with_batch
from .checks import check_secret_size, find_strategy
from .cohort import Cohort, keep_moments, kept_moments, train_cohort
from .compared import compared
from .experiment import Experiment, build, make_participants
from .rates import set_rates
from .simulate import OpenRound, Run, check_beginning, close_round, hold_folder, open_round, run_round

#: Sections and keys that belong to a client's row.
_OF_A_ROW = {"optimizer": {"lr"}, "privacy": {"max_grad_norm", "target_epsilon", "noise_multiplier"}}


def shared_setting(config: Config) -> str | None:
    """What runs have in common that can be trained together: equal strings can. None for a run that has to be alone.

    These are methods whose rounds move nothing but the rows of ``b`` (or of a core): a trained ``a``, a base weight
    that the server adds to, or a factor that it replaces, would differ between the runs. Secure noise and client-level
    privacy keep one ledger file a run.
    """
    strategy, privacy = find_strategy(config.federation.strategy), config.privacy
    if not strategy.moves_rows_only or privacy.is_secure or privacy.unit == "client":
        return None
    return json.dumps(config.model_dump(mode="json", exclude=_OF_A_ROW), sort_keys=True)


def simulate_together(
    configs: Mapping[Path, Config], resume: bool = False, on_rounds: Callable[[int], object] = lambda rounds: None
) -> list[RunResult]:
    """Runs of one :func:`shared_setting`, each in a folder of its own, as ``simulate`` would leave it (to rounding).

    All of them take each round together; ``federation.one_pass`` says whether in one pass (``auto``: where single
    batches would be small). The rows of all runs are in memory at once, and the seconds of a round are divided among
    them. A single run may have any configuration.

    Args:
        configs: by folder.
        resume: continue those that have begun, each after its last completed round; those that are behind train first.
        on_rounds: called with how many rounds, of all runs together, have been completed since the last call; first
            with those that were completed before.

    Raises:
        ValueError: their settings differ, or several processes call it. All that ``simulate`` raises.
    """
    if not configs:
        return []
    if (size := find_workers().size) > 1:
        raise ValueError(f"simulate_together runs in one process, and this is one of {size}: they can share simulate()")
    folder, first = next(iter(configs.items()))
    shared = shared_setting(first)
    apart = [str(path) for path, config in configs.items() if shared is None or shared_setting(config) != shared]
    if apart and len(configs) > 1:
        raise ValueError(
            f"configs: {', '.join(apart)} cannot be trained together with {folder}: only runs of a method that trains "
            f"b alone, which differ in nothing but {_names()}, can; simulate them one by one"
        )
    for path, config in configs.items():
        check_beginning(config, path, resume)
    experiment = build(first)
    members = (
        [experiment] if len(configs) == 1 else [_member(experiment, *each) for each in enumerate(configs.values())]
    )
    with ExitStack() as held:
        for path in configs:
            hold_folder(path, resume, held)
        runs = [Run.open(member, path, resume) for member, path in zip(members, configs, strict=True)]
        for run in runs:
            run.experiment.baselines = compared(run.experiment, run.folder)
        on_rounds(sum(run.server.round for run in runs))
        while going := [run for run in runs if not run.is_over()]:
            behind = min(run.server.round for run in going)
            last = [run for run in going if run.server.round == behind]
            _take_round(last)
            on_rounds(len(last))
        return [run.finish() for run in runs]


def _member(experiment: Experiment, number: int, config: Config) -> Experiment:
    """One run's view of what all share: its own configuration, and clients that carry its values."""
    config = with_batch(config.with_noise("seeded"), experiment.partition)
    check_secret_size(config, experiment.data, len(experiment.partition))
    participants = experiment.participants
    if number:  # the first run's are there already
        participants = make_participants(config, experiment.partition, experiment.train)
    for participant in participants:
        participant.run = number
        participant.max_grad_norm = config.privacy.max_grad_norm
    set_rates(config, experiment.loaded, experiment.adapters, participants, len(participants))
    return replace(experiment, config=config, participants=participants)


def _take_round(runs: Sequence[Run]) -> None:
    """One communication round of every run."""
    if len(runs) == 1:
        runs[0].complete_round(run_round(runs[0].experiment, runs[0].server))
        return
    started = time.perf_counter()
    opened = [open_round(run.experiment, run.server) for run in runs]
    reports = _train(runs, opened)
    seconds, rows = (time.perf_counter() - started) / len(runs), []
    for run, one, report in zip(runs, opened, reports, strict=True):
        rows.append(close_round(run.experiment, run.server, one, report, seconds))
    for run, row in zip(runs, rows, strict=True):  # at the end, close together: who is interrupted here falls behind
        run.complete_round(row)


def _train(runs: Sequence[Run], opened: Sequence[OpenRound]) -> list[TrainingReport]:
    """Local training of every run's rows, as those of one large cohort on the first run's engine."""
    experiment, rows = runs[0].experiment, torch.cat([one.rows for one in opened])
    cohorts, optimizer = [one.cohort for one in opened], experiment.config.optimizer
    cohort = Cohort(
        [client for each in cohorts for client in each.clients],
        [steps for each in cohorts for steps in each.steps],
        [arrives for each in cohorts for arrives in each.arrives],
    )
    moments = None
    if optimizer.keep_moments:
        own = [
            kept_moments(run.experiment, run.server, one.cohort, one.rows)
            for run, one in zip(runs, opened, strict=True)
        ]
        moments = Moments.stacked(own)
    report = train_cohort(experiment, runs[0].server, cohort, rows, moments)
    reports, begin = [], 0
    for run, one in zip(runs, opened, strict=True):
        end = begin + len(one.rows)
        one.rows.copy_(rows[begin:end])
        if moments is not None:
            keep_moments(run.server, one.cohort, moments.rows(torch.arange(begin, end)))
        reports.append(report.part(begin, end))
        begin = end
    return reports


def _names() -> str:
    return ", ".join(f"{section}.{key}" for section, keys in _OF_A_ROW.items() for key in sorted(keys))
