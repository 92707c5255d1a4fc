"""The server's rounds over Flower's grid: messages out, answers in, the folder of a run at the end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp import Grid

from ...config import Config, to_yaml
from ...files.atomic import write_atomically
from ...runs.bundle import save_bundle
from ...runs.folder import CHECKPOINT, SUMMARY, append_row, completed_rows, write_json, write_rows
from ...runs.trackers import Trackers
from ..checkpoint import Checkpoint
from ..experiment import Experiment, build
from ..records import summary
from ..strategies import ServerState
from .answers import read_answer
from .keys_ahead import KeysAhead
from .output import check_federation
from .replies import gathered, named
from .rounds import Exchange, check_remote, check_secure_aggregation, remote_round
from .statement import federation_statement, stated_epsilon, statement_text
from .terms import Terms

_POLL_SECONDS, _DRAW = 0.5, 7


class TooFewClients(RuntimeError):
    """Fewer clients are connected than a round needs."""


class NobodyAnswered(RuntimeError):
    """No client answered in any round: there is nothing to save."""


def serve(
    grid: Grid,
    context: Context,
    config: Config,
    folder: Path,
    timeout: float,
    secagg_range: float | None = None,
    resume: bool = False,
) -> None:
    """All rounds of a federation, with ``resume`` from the last completed one.

    Args:
        grid: Flower's way to the clients.
        context: of the ServerApp.
        config: the federation's.
        folder: made if missing; receives what ``simulate`` writes; the statement holds what clients' ledgers reported.
        timeout: seconds to wait for connections, and for the answers of a round.
        secagg_range: quantise numbers within ± this and aggregate securely; None aggregates in the open.
        resume: go on with the run that the folder holds; without it, it must hold none.

    Raises:
        CheckpointError: a folder that holds a run, or one that is finished.
        ConfigError: what remote clients or secure aggregation cannot do.
        TooFewClients: fewer than ``federation.min_available``.
        NobodyAnswered: every client failed or refused in every round; says why in the last one.
    """
    config = config.with_noise("secure")
    check_federation(config, folder, resume)
    check_remote(config)
    experiment = build(config, caches_layers=False)
    strategy = experiment.strategy
    if secagg_range is not None or config.privacy.noise_at == "clients":
        check_secure_aggregation(type(strategy), config)
    server, rows, terms = strategy.begin(), [], Terms.of(experiment)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint(folder / CHECKPOINT, config, server)
    if checkpoint.path.exists():
        checkpoint.load()
        rows = completed_rows(folder, server.round)
    write_rows(folder, rows)
    write_atomically(folder / "config.yaml", to_yaml(config).encode())
    wanted, known = max(config.federation.min_available, config.clients.count or 1), dict[int, int]()
    level = experiment.client_level
    if level is not None or secagg_range is not None:
        from .secagg import MaskedRounds

        masked = MaskedRounds(KeysAhead(grid), context, timeout)

    def send(round_number: int, numbers: np.ndarray, terms: Terms) -> Exchange:
        nodes = drawn(config, connected(grid, wanted, config.federation.min_available, timeout), round_number)
        count = strategy.wire.numbers_up(server)
        if level is not None:
            return masked.shares(nodes, round_number, numbers, terms, level.shares_of(count))
        if secagg_range is not None:
            return masked.average(nodes, round_number, numbers, terms, secagg_range, count)
        return exchange(grid, nodes, round_number, numbers, terms, timeout, config.federation.payload, known)

    trackers = Trackers(config, folder)
    while server.round < config.federation.rounds:
        rows.append(remote_round(experiment, server, send, terms, rows[-1] if rows else None))
        append_row(folder, rows[-1])
        checkpoint.save()
        trackers.log(rows[-1])
    trackers.close()
    _finish(experiment, server, folder, rows)


def _finish(experiment: Experiment, server: ServerState, folder: Path, rows: list[dict[str, Any]]) -> None:
    """The adapter as it is saved, what clients said of its privacy, and the summary.

    Raises:
        NobodyAnswered: there is none.
    """
    config = experiment.config
    if not rows[-1]["answered"]:
        raise NobodyAnswered(
            f"no client answered in any of {len(rows)} rounds: nothing was trained, and nothing is saved; in the last "
            f"one: {'; '.join(rows[-1]['failed'])}"
        )
    experiment.strategy.export(server)
    save_bundle(folder / "adapter", experiment.adapters, experiment.loaded, config, experiment.data)
    statement = federation_statement(config, rows)
    write_json(folder / "privacy.json", statement)
    write_atomically(folder / "privacy.txt", statement_text(statement).encode())
    write_json(folder / SUMMARY, summary(experiment, server, rows) | {"epsilon": stated_epsilon(statement)})


def connected(grid: Grid, wanted: int, needed: int, timeout: float) -> list[int]:
    """The nodes of a round: waits for ``wanted``, and after ``timeout`` seconds goes on with ``needed``.

    Raises:
        TooFewClients: fewer than ``needed``.
    """
    deadline = time.monotonic() + timeout
    while len(nodes := sorted(grid.get_node_ids())) < wanted and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    if len(nodes) < needed:
        raise TooFewClients(
            f"{len(nodes)} clients are connected after {timeout:g} s, federation.min_available={needed} are needed; "
            "start more SuperNodes, wait longer, or lower it"
        )
    return nodes


def drawn(config: Config, nodes: list[int], round_number: int) -> list[int]:
    """The nodes of a round: all, or the configured share, drawn from the seed and the round. Where clients bring the
    noise it is the share of all clients, connected or not: of fewer it would not suffice.
    """
    clients = config.clients.count if config.privacy.noise_at == "clients" else None
    count = config.federation.cohort(clients or len(nodes))
    if count >= len(nodes):
        return nodes
    words = np.random.SeedSequence([config.seed, round_number], spawn_key=(_DRAW,))
    chosen = np.random.Generator(np.random.Philox(words)).choice(len(nodes), count, replace=False)
    return [nodes[i] for i in sorted(chosen)]


def exchange(
    grid: Grid,
    nodes: list[int],
    round_number: int,
    numbers: np.ndarray,
    terms: Terms,
    timeout: float,
    kind: str = "float32",
    known: dict[int, int] | None = None,
) -> Exchange:
    """Sends the round to every node and gathers what comes back in time, in the format ``federation.payload``.

    Args:
        known: the client that each node said it is, by node; added to.
    """
    content = RecordDict(
        {
            "numbers": ArrayRecord([numbers]),
            "task": ConfigRecord({"round": round_number, "terms": terms.to_text()}),
        }
    )
    messages = [
        Message(content, dst_node_id=node, message_type="train", group_id=str(round_number + 1)) for node in nodes
    ]
    got = Exchange([], bytes_down=len(nodes) * recorddict_to_proto(content).ByteSize())
    known = {} if known is None else known
    replies, failed = gathered(grid, messages, timeout)
    for node, reply in replies.items():
        got.bytes_up += recorddict_to_proto(reply.content).ByteSize()
        try:
            arrays = reply.content.array_records["numbers"].to_numpy_ndarrays()
            answer = read_answer(dict(reply.content.config_records["report"]), arrays, kind)
        except Exception as error:  # whatever a hostile client may think of must not end the run
            failed[node] = f"what it sent cannot be read ({type(error).__name__}: {error})"
            continue
        got.answers.append(answer)
        known[node] = answer.client
    got.failed = [f"{named(node, known)}: {why}" for node, why in failed.items()]
    return got
