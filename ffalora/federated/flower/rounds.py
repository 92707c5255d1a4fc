"""The server's half of a round whose clients are elsewhere: what goes out, and which answers count."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...config import Config, ConfigError
from ...files.numbers import rounded_up
from ...training.report import TrainingReport
from ..experiment import Experiment
from ..records import metrics_row
from ..simulate import evaluate_views
from ..strategies import STRATEGIES, ServerState, Strategy
from .site import Answer

logger = logging.getLogger(__name__)


@dataclass
class Exchange:
    """What came back from one round of messages.

    Attributes:
        answers: of the clients that finished; their numbers are None under secure aggregation.
        sum_only: the average that secure aggregation gave, float32; None without it.
        failed: who did not answer, or with what error.
        bytes_up, bytes_down: of all messages, as serialised.
    """

    answers: list[Answer]
    sum_only: np.ndarray | None = None
    failed: list[str] = field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0


#: Where a server that was stopped by an error says which, in its output folder.
FAILURE = "failure.txt"
#: (round, numbers, fingerprint) -> what came back.
Send = Callable[[int, np.ndarray, str], Exchange]


def remote_round(experiment: Experiment, server: ServerState, send: Send) -> dict[str, Any]:
    """One communication round with remote clients; changes ``server`` and returns the row of ``metrics.jsonl``.

    A client that sends NaN, Inf or the wrong count of numbers is rejected and named; the round goes on without it, as
    it does without clients that fail or vanish. A round without any answer leaves the state as it is.
    """
    started = time.perf_counter()
    config, strategy = experiment.config, experiment.strategy
    strategy.begin_round(server)
    got = send(server.round, strategy.download(server).cpu().numpy(), strategy.fingerprint())
    for failure in got.failed:
        logger.warning("round %d: %s", server.round + 1, failure)
    report, gap = TrainingReport(), 0.0
    if got.sum_only is not None:
        mean = strategy.received(torch.from_numpy(got.sum_only))
        gap = strategy.aggregate(server, [got.answers[0].client], mean[None], torch.ones(1, dtype=torch.float64))
    elif got.answers:
        answers = sorted(got.answers, key=lambda answer: answer.client)
        kept = [answer for answer in answers if _is_sound(strategy, answer)]
        report.rejected = [answer.client for answer in answers if not _is_sound(strategy, answer)]
        if kept:
            rows = torch.stack([strategy.received(torch.from_numpy(np.array(a.numbers))) for a in kept])
            gap = strategy.aggregate(server, [a.client for a in kept], rows, _weights(kept, config))
    server.round += 1
    metrics = {}
    if server.round == config.federation.rounds or server.round % config.federation.evaluate_every == 0:
        metrics = evaluate_views(experiment, server)
    seconds = time.perf_counter() - started
    row = metrics_row(experiment, server, report, metrics, gap, seconds, got.bytes_up, got.bytes_down)
    spent = {str(answer.client): rounded_up(answer.epsilon) for answer in got.answers if answer.epsilon is not None}
    losses = [answer.loss for answer in got.answers if np.isfinite(answer.loss)]
    row["train_loss"] = round(float(np.mean(losses)), 6) if losses else None
    return row | {"epsilon": max(spent.values(), default=None), "epsilon_per_client": spent, "failed": got.failed}


def check_remote(config: Config) -> None:
    """Refuses what belongs to simulations only.

    Raises:
        ConfigError: client-level privacy (its Poisson draw needs to know the whole population), or simulated faults.
    """
    if config.privacy.unit == "client":
        raise ConfigError(
            "privacy.unit='client': the server would have to draw clients from the whole population, connected or not; "
            "simulate it (ffalora simulate), or protect samples (privacy.unit: sample)"
        )
    for key in ("dropout_rate", "straggler_rate"):
        if getattr(config.federation, key):
            raise ConfigError(
                f"federation.{key}={getattr(config.federation, key)} simulates faults; real clients have their own: "
                "set it to 0"
            )


def check_secure_aggregation(strategy: type[Strategy], config: Config) -> None:
    """Refuses what a server that sees nothing but a uniform sum cannot do.

    Raises:
        ConfigError: names the method, or the weights.
    """
    if not strategy.linear:
        able = ", ".join(name for name, other in STRATEGIES.items() if other.linear)
        raise ConfigError(
            f"federation.strategy={strategy.name!r} needs each client's own numbers, which secure aggregation hides; "
            f"methods that need sums only: {able}"
        )
    if config.federation.weighting != "uniform":
        raise ConfigError("federation.weighting='size': secure aggregation sums with equal weights; set it to uniform")


def check_range(numbers: np.ndarray, limit: float, expected: int) -> None:
    """At the client, before masking: what is sent must be finite, of the right count and inside the quantised range.

    Raises:
        ValueError: says which; nothing is sent then.
    """
    if numbers.shape != (expected,):
        raise ValueError(f"{numbers.shape} numbers to send, {expected} expected")
    if not np.isfinite(numbers).all():
        raise ValueError("NaN or Inf among the numbers to send")
    largest = float(np.abs(numbers).max(initial=0.0))
    if largest > limit:
        raise ValueError(f"a number of {largest:.3g} lies outside the quantised range ±{limit:g}; raise secagg-range")


def _is_sound(strategy: Strategy, answer: Answer) -> bool:
    numbers = answer.numbers
    wanted = strategy.upload(strategy.adapters.state()).numel()
    return numbers is not None and numbers.shape == (wanted,) and bool(np.isfinite(numbers).all())


def _weights(answers: Sequence[Answer], config: Config) -> Tensor:
    sizes = [answer.samples if config.federation.weighting == "size" else 1 for answer in answers]
    weights = torch.tensor(sizes, dtype=torch.float64)
    return weights / weights.sum()
