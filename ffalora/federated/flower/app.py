"""``ClientApp`` and ``ServerApp`` of a federation; Flower loads them by name from a generated app folder.

The run's configuration holds ``ffalora`` (the configuration as YAML), ``output`` (the server's folder), ``secagg``,
``secagg-range`` and ``timeout`` (seconds that a round waits for answers). A node's configuration holds ``client`` (its
id), ``folder`` (where its accounts live), ``policy`` (a file; see ``SitePolicy``), and, for data of its own, ``data``
and ``ledger`` (name or folder of the data's ledger).
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.compat.common import recorddict_compat
from flwr.serverapp import Grid, ServerApp

from ...config import Config, from_mapping
from ..strategies.wire import BYTES_PER_NUMBER
from .answers import Answer
from .masked_sum import masked_by_client
from .policy import load_policy
from .rounds import check_range, least_shares
from .server import FAILURE, serve
from .site import Site
from .terms import Terms


def _mask(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Secure aggregation where the run asks for it: the app is then called for the one stage that trains."""
    config = run_configuration(context)
    if config.privacy.noise_at == "clients":
        return masked_by_client(message, context, call_next, config.privacy.sum_bits, least_shares(config))
    if context.run_config["secagg"]:
        return secaggplus_mod(message, context, call_next)
    return call_next(message, context)


client_app = ClientApp(mods=[_mask])
server_app = ServerApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """One client's share of a round."""
    run = context.run_config
    if run["secagg"] or run_configuration(context).privacy.noise_at == "clients":
        given = recorddict_compat.recorddict_to_fitins(message.content, keep_input=True)
        (numbers,) = parameters_to_ndarrays(given.parameters)
        site, answer = _answer(context, numbers, given.config)
        if answer.numbers is None:  # a share of a noisy sum, whole numbers already
            (sent,) = answer.arrays
        else:
            sent = np.asarray(answer.numbers, dtype=np.float64)
            expected = site.experiment.strategy.wire.bytes_up(site.server, site.client) // BYTES_PER_NUMBER
            check_range(sent, float(run["secagg-range"]), expected)
        result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([sent]), 1, dict(answer.report()))
        return Message(recorddict_compat.fitres_to_recorddict(result, keep_input=False), reply_to=message)
    (numbers,) = message.content.array_records["numbers"].to_numpy_ndarrays()
    _, answer = _answer(context, numbers, message.content.config_records["task"])
    content = RecordDict({"numbers": ArrayRecord(list(answer.arrays)), "report": ConfigRecord(dict(answer.report()))})
    return Message(content, reply_to=message)


def _answer(context: Context, numbers: np.ndarray, task: Mapping[str, Any]) -> tuple[Site, Answer]:
    """A site on this node's terms, and its answer to a round's task."""
    node, terms = context.node_config, Terms.from_text(str(task["terms"]))
    site = Site(
        run_configuration(context),
        int(node["client"]),
        Path(str(node["folder"])),
        data=str(node["data"]) if node.get("data") else None,
        policy=load_policy(str(node["policy"]) if node.get("policy") else None),
        labels=terms.labels,
        ledger=str(node["ledger"]) if node.get("ledger") else None,
    )
    return site, site.train(int(task["round"]), numbers, terms)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """The server's rounds; what stops them is written into the output folder too."""
    run = context.run_config
    output = Path(str(run["output"]))
    try:
        limit = float(run["secagg-range"]) if run["secagg"] else None
        serve(grid, context, run_configuration(context), output, float(run["timeout"]), limit)
    except Exception:
        output.mkdir(parents=True, exist_ok=True)
        (output / FAILURE).write_text(traceback.format_exc())
        raise


def run_configuration(context: Context) -> Config:
    """The federation's configuration, as every participant gets it."""
    return from_mapping(yaml.safe_load(str(context.run_config["ffalora"])))
