"""Secure aggregation (SecAgg+; Bell et al., CCS 2020) by Flower's workflow: the server learns the uniform average only.

Numbers are quantised to 2²² levels of ±range, with stochastic rounding: each client's error is below one level, ``range
· 2⁻²¹``, and so is the average's. Where clients bring noise in shares, sums are of whole numbers (``masked_sum``).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.common import FitIns, Parameters, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.client_manager import ClientManager
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import Strategy as LegacyStrategy
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.serverapp import Grid

from ...config import ConfigError
from ...privacy.distributed import NoiseShares
from .answers import read_answer
from .keys_ahead import KeysAhead
from .masked_sum import KeyedWorkflow, SumModulo
from .replies import named
from .rounds import Exchange
from .terms import Terms

logger = logging.getLogger(__name__)
LEVELS, _MODULUS = 2**22, 2**32
_THRESHOLD = 0.5


@dataclass
class _Node:
    """What the workflow wants to know of a client."""

    node_id: int


@dataclass
class _OneRound:
    """What the workflow wants of a strategy and of a client manager: whom to ask what, and where the result goes."""

    nodes: list[int]
    instructions: FitIns
    results: list[Any] = field(default_factory=list)

    def num_available(self) -> int:
        return len(self.nodes)

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: Any
    ) -> list[tuple[_Node, FitIns]]:
        return [(_Node(node), self.instructions) for node in self.nodes]

    def aggregate_fit(self, server_round: int, results: list[Any], failures: list[Any]) -> tuple[None, dict]:
        self.results = results
        return None, {}


@dataclass
class MaskedRounds:
    """The rounds of a federation in which the server learns a sum, and no client's own numbers. What clients say of
    themselves (id, and what their policies report) is not hidden.

    Attributes:
        grid: the way to the clients; context: of the ServerApp; timeout: seconds to wait for the answers of a stage.
        known: the client that each node said it is, by node; added to.
    """

    grid: KeysAhead
    context: Context
    timeout: float
    known: dict[int, int] = field(default_factory=dict)

    def average(
        self, nodes: list[int], round_number: int, numbers: np.ndarray, terms: Terms, limit: float, count: int
    ) -> Exchange:
        """A round that gives the average of what clients send, ``count`` numbers within ±``limit`` each.

        Half of the clients must stay to the end; with fewer the round fails as a whole and leaves the state as it was.

        Raises:
            ConfigError: more clients than a sum of levels has room for.
        """
        if len(nodes) > _MODULUS // LEVELS - 1:
            raise ConfigError(
                f"{len(nodes)} clients in a round: secure aggregation sums their {LEVELS} levels modulo {_MODULUS}, "
                f"which has room for {_MODULUS // LEVELS - 1}; lower federation.participation"
            )
        workflow = KeyedWorkflow(
            1.0,
            _THRESHOLD,
            max_weight=1.0,
            clipping_range=limit,
            quantization_range=LEVELS,
            modulus_range=_MODULUS,
            timeout=self.timeout,
        )
        shapes = [(1,), (count,)]  # Flower's: what a client weighs, and its numbers
        got, results = self._run(workflow, nodes, round_number, numbers, terms, shapes)
        if results:
            (average,) = parameters_to_ndarrays(results[0][1].parameters)
            got.sum_only = average.astype(np.float32)
        return got

    def shares(
        self, nodes: list[int], round_number: int, numbers: np.ndarray, terms: Terms, shares: NoiseShares
    ) -> Exchange:
        """A round whose clients bring the noise: it gives the sum of their shares modulo ``2**shares.bits``.

        Without ``shares.least`` clients to the end nobody learns anything, and the state stays; whoever trained has
        paid.
        """
        if len(nodes) < shares.least:
            return Exchange(
                [], failed=[f"{len(nodes)} clients are connected, at least {shares.least} must bring noise"]
            )
        workflow = SumModulo(shares.bits, shares.least, self.timeout)
        got, _ = self._run(workflow, nodes[: shares.clients], round_number, numbers, terms, [(shares.length,)])
        got.shares = workflow.total
        return got

    def _run(
        self,
        workflow: KeyedWorkflow,
        nodes: list[int],
        round_number: int,
        numbers: np.ndarray,
        terms: Terms,
        shapes: Sequence[tuple[int, ...]],
    ) -> tuple[Exchange, list[Any]]:
        """What clients said of themselves, and Flower's results (none where too few clients stayed)."""
        task = FitIns(ndarrays_to_parameters([numbers]), {"round": round_number, "terms": terms.to_text()})
        one, context, grid = _OneRound(nodes, task), self.context, self.grid
        context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: round_number + 1})
        context.state.array_records[MAIN_PARAMS_RECORD] = ArrayRecord([numbers])
        legacy = LegacyContext(context, strategy=cast(LegacyStrategy, one), client_manager=cast(ClientManager, one))
        grid.begin(shapes)
        halted = "secure aggregation was halted: too few clients stayed"
        try:
            workflow(cast(Grid, grid), legacy)
        except Exception as error:  # whatever a hostile client may think of must not end the run
            logger.exception("round %d: secure aggregation was halted", round_number + 1)
            halted = (
                f"secure aggregation was halted: what a client sent is no part of it ({type(error).__name__}: {error})"
            )
        got = Exchange([], bytes_up=grid.bytes_up, bytes_down=grid.bytes_down)
        for proxy, result in one.results:
            try:
                got.answers.append(read_answer(dict(result.metrics), None))
                self.known[proxy.node_id] = got.answers[-1].client
            except ValueError as error:
                grid.failed[proxy.node_id] = str(error)
        got.failed = [f"{named(node, self.known)}: {why}" for node, why in grid.failed.items()]
        if not one.results:
            got.failed.append(halted)
        return got, one.results
