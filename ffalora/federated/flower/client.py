"""``ClientApp`` of a federation: hands every message to the site's process, which stays, and sends what that answers.

Flower starts a process for each message. This module imports neither torch nor a model, so that a message costs the
start of Python and no more. A node's configuration holds ``site``, the folder of a running ``ffalora site``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from .door import ask

#: (context, task, arrays) -> report and arrays of a client.
Ask = Callable[[Context, dict[str, Any], list[np.ndarray]], tuple]


def _mask(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Secure aggregation where the run asks for it: the app is then called for the one stage that trains."""
    if not _is_masked(context):
        return call_next(message, context)
    from flwr.client.mod import secaggplus_mod

    from .keys_ahead import Mod, answered_with_keys

    mod: Mod = secaggplus_mod
    if _brings_noise(context):
        from ...config import from_mapping
        from .masked_sum import masked_by_client

        config = from_mapping(_values(str(context.run_config["ffalora"])))
        mod = partial(masked_by_client, bits=config.privacy.sum_bits, least=config.least_shares)
    return answered_with_keys(message, context, call_next, mod)


def app_that_asks(ask: Ask) -> ClientApp:
    """A ``ClientApp`` whose share of a round is what ``ask`` answers: a report, and arrays."""
    app = ClientApp(mods=[_mask])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """One client's share of a round."""
        return (_train_masked if _is_masked(context) else _train)(message, context, ask)

    return app


def _train(message: Message, context: Context, ask: Ask) -> Message:
    arrays = message.content.array_records["numbers"].to_numpy_ndarrays()
    report, arrays = ask(context, _task(context, message.content.config_records["task"]), arrays)
    content = RecordDict({"numbers": ArrayRecord(arrays), "report": ConfigRecord(report)})
    return Message(content, reply_to=message)


def _train_masked(message: Message, context: Context, ask: Ask) -> Message:
    """The stage of secure aggregation that trains, in the form that Flower's masks want."""
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.compat.common import recorddict_compat

    given = recorddict_compat.recorddict_to_fitins(message.content, keep_input=True)
    task = _task(context, given.config)
    if context.run_config["secagg"]:
        task["limit"] = float(context.run_config["secagg-range"])
    report, sent = ask(context, task, parameters_to_ndarrays(given.parameters))
    result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters(sent), 1, report)
    return Message(recorddict_compat.fitres_to_recorddict(result, keep_input=False), reply_to=message)


def _is_masked(context: Context) -> bool:
    """Whether the server is to learn a sum only."""
    return bool(context.run_config["secagg"]) or _brings_noise(context)


def _brings_noise(context: Context) -> bool:
    """Whether clients bring the noise of the run, in shares that are whole numbers."""
    values = _values(str(context.run_config["ffalora"]))
    return (values.get("privacy") or {}).get("noise_at") == "clients"


@cache
def _values(text: str) -> dict[str, Any]:
    """A run's configuration as it is written: a process answers one message, and asks several times."""
    return yaml.safe_load(text)


def _task(context: Context, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a message asks for, with the run's configuration."""
    return dict(given) | {"ffalora": str(context.run_config["ffalora"])}


def _ask_site(context: Context, task: dict[str, Any], arrays: list[np.ndarray]) -> tuple:
    return ask(Path(str(context.node_config["site"])), task, arrays)


client_app = app_that_asks(_ask_site)
