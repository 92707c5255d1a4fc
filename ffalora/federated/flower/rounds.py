"""The server's half of a round whose clients are elsewhere: what goes out, and which answers count."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...config import Config, ConfigError
from ...files.numbers import rounded_up
from ..checks import find_strategy
from ..experiment import Experiment
from ..payload import received_row
from ..simulate import end_round
from ..strategies import STRATEGIES, Answers, ServerState, Strategy
from .answers import Answer, answer_weights, bound_rows, sound_answers
from .terms import Terms

logger = logging.getLogger(__name__)


@dataclass
class Exchange:
    """What came back from one round of messages.

    Attributes:
        answers: of the clients that finished; their numbers are None under secure aggregation.
        sum_only: the average that secure aggregation gave, float32; None without it.
        shares: the sum of shares, int64, where clients bring the noise; None without it.
        failed: who did not answer, or with what error.
        bytes_up, bytes_down: of all messages, as serialised.
    """

    answers: list[Answer]
    sum_only: np.ndarray | None = None
    shares: np.ndarray | None = None
    failed: list[str] = field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0


#: (round, numbers, terms) -> what came back.
Send = Callable[[int, np.ndarray, Terms], Exchange]


def remote_round(
    experiment: Experiment, server: ServerState, send: Send, terms: Terms, earlier: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """One communication round with remote clients; changes ``server`` and returns the row of ``metrics.jsonl``.

    A client that sends what cannot be its row is rejected and named; the round goes on without it, as it does without
    clients that fail or vanish. A round without any answer leaves the state as it is. The row holds what the server
    measured or was told, and nothing else: ``answered`` are the clients that ever answered, and ``epsilon`` is None
    where not all of them report theirs.

    Args:
        experiment: the server's. server: its state. send: sends the round and gathers the answers.
        terms: what clients must agree to.
        earlier: the row of the round before; the ε of clients that do not answer in this one is kept from it.
    """
    started = time.perf_counter()
    config, strategy = experiment.config, experiment.strategy
    wire = strategy.wire
    strategy.load(server, trains=True)
    got = send(server.round, wire.download(server).cpu().numpy(), terms)
    rejected: dict[int, str] = {}
    sent: Answers | None = None
    bounded: list[int] = []
    if experiment.client_level is not None:
        if got.shares is not None:
            sent = sum_of_shares(experiment, server, got.shares)
    elif got.sum_only is not None:  # of nobody by name
        mean = wire.received(server, torch.from_numpy(got.sum_only))
        sent = Answers([0], mean[None], torch.ones(1, dtype=torch.float64))
    elif got.answers:
        wanted = wire.upload(server, torch.zeros(wire.trained_layout(server).width)).numel()
        by_size = config.federation.weighting == "size"
        kept, rejected = sound_answers(got.answers, wanted, strategy.clients, by_size)
        if kept:
            clients = [answer.client for answer in kept]
            kind = config.federation.payload
            rows = torch.stack([received_row(kind, strategy, server, a.client, np.array(a.numbers)) for a in kept])
            rows, over = bound_rows(strategy.start(server, clients), rows)
            bounded = [clients[i] for i in over]
            sent = Answers(clients, rows, answer_weights(kept, config), experiment.mean)
    got.failed += [f"client {client}: {reason}" for client, reason in rejected.items()]
    for failure in got.failed:
        logger.warning("round %d: %s", server.round + 1, failure)
    gap, metrics = end_round(experiment, server, sent)
    knows_rows = got.sum_only is None and experiment.client_level is None and not strategy.personal
    believed = [answer for answer in got.answers if 0 <= answer.client < strategy.clients]  # rejected ones have paid
    spent = _latest("epsilon_per_client", "epsilon", believed, earlier)
    answered = sorted({*(earlier or {}).get("answered", ()), *(answer.client for answer in believed)})
    return {
        "round": server.round,
        "seconds": round(time.perf_counter() - started, 3),
        "metrics": metrics,
        "epsilon": max(spent.values(), default=None) if {str(one) for one in answered} <= set(spent) else None,
        "answered": answered,
        "epsilon_per_client": spent,
        "final_epsilon_per_client": _latest("final_epsilon_per_client", "final_epsilon", believed, earlier),
        "bytes_up": got.bytes_up,
        "bytes_down": got.bytes_down,
        "update_gap": gap if strategy.exact or knows_rows else None,
        "rejected": sorted(rejected),
        "bounded": bounded,
        "failed": got.failed,
    }


def sum_of_shares(experiment: Experiment, server: ServerState, shares: np.ndarray) -> Answers:
    """What a strategy is given where only the noisy sum of updates is known: an average without rows of anybody."""

    def mean(start: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        level, state = experiment.client_level, start.clone()
        if level is not None:
            level.move_by_sum_(state, shares, server.round, experiment.adapters.layout.parameter_index())
        return state

    return Answers([0], experiment.strategy.start(server, [0]), torch.ones(1, dtype=torch.float64), mean)


def _latest(key: str, name: str, answers: Sequence[Answer], earlier: Mapping[str, Any] | None) -> dict[str, float]:
    """The largest that each client ever said, of this round and those before."""
    said = dict((earlier or {}).get(key, {}))
    for answer in answers:
        value = getattr(answer, name)
        if value is not None:
            said[str(answer.client)] = max(rounded_up(value), said.get(str(answer.client), 0.0))
    return dict(sorted(said.items(), key=lambda item: int(item[0])))


def check_remote(config: Config) -> None:
    """Refuses what belongs to simulations only, and warns of a method whose result only its clients have.

    Raises:
        ConfigError: client-level privacy whose noise the server would add (its Poisson draw needs to know the whole
            population), or simulated faults.
    """
    if config.privacy.mechanism != "independent":
        raise ConfigError(
            f"privacy.mechanism={config.privacy.mechanism!r}: a site keeps no noise from round to round, so "
            "that each would be charged as a mechanism of its own; set it to independent"
        )
    if config.privacy.unit == "client" and config.privacy.noise_at == "server":
        raise ConfigError(
            "privacy.unit='client': the server would have to draw clients from the whole population, connected or not, "
            "and would see their updates; let clients bring the noise (privacy.noise_at: clients), simulate it "
            "(ffalora simulate), or protect samples (privacy.unit: sample)"
        )
    if config.privacy.noise_at == "clients" and config.least_shares < 2:
        raise ConfigError(
            f"clients.count={config.clients.count}, federation.participation={config.federation.participation}, "
            f"privacy.dropouts={config.privacy.dropouts}: a sum needs at least two clients, and their number must be "
            "known; set clients.count, or lower privacy.dropouts"
        )
    if find_strategy(config.federation.strategy).personal:
        logger.warning(
            "federation.strategy=%s: each site keeps its own b; the server evaluates and saves the shared a with "
            "the b of the start",
            config.federation.strategy,
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
    if config.federation.robust_mean is not None:
        raise ConfigError(
            f"federation.robust_mean={config.federation.robust_mean!r} compares clients' own numbers, which secure "
            "aggregation hides; leave one of the two out"
        )
    if config.federation.payload != "float32":
        raise ConfigError(
            f"federation.payload={config.federation.payload!r} is not what masks add up: secure aggregation quantises "
            "to levels that all clients share (--secagg-range); set it to float32"
        )
    if config.federation.weighting != "uniform":
        raise ConfigError("federation.weighting='size': secure aggregation sums with equal weights; set it to uniform")


def check_range(numbers: np.ndarray, limit: float, expected: int) -> None:
    """At the client, before masking: what is sent must be finite, of the right count and inside the quantised range.

    Raises:
        ValueError: not finite, or the wrong count; nothing is sent then. ConfigError: outside the range, which the
            server is told, as its run says it.
    """
    if numbers.shape != (expected,):
        raise ValueError(f"{numbers.shape} numbers to send, {expected} expected")
    if not np.isfinite(numbers).all():
        raise ValueError("NaN or Inf among the numbers to send")
    largest = float(np.abs(numbers).max(initial=0.0))
    if largest > limit:
        raise ConfigError(f"a number of {largest:.3g} lies outside the quantised range ±{limit:g}; raise secagg-range")
