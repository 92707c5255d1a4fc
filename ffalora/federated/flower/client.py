"""``ClientApp`` of a federation: hands every message to the site's process, which stays, and sends what that answers.

Flower starts a process for each message. This module imports neither torch nor a model, so that a message costs the
start of Python and no more. A node's configuration holds ``site``, the folder of a running ``ffalora site``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from .asked import brings_noise, config_of, is_masked, task_of
from .door import ask

#: (context, task, arrays) -> report and arrays of a client.
Ask = Callable[[Context, dict[str, Any], list[np.ndarray]], tuple]


def _mask(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Secure aggregation where the run asks for it: the app is then called for the one stage that trains."""
    if not is_masked(context.run_config):
        return call_next(message, context)
    from flwr.client.mod import secaggplus_mod

    from .keys_ahead import Mod, answered_with_keys

    mod: Mod = secaggplus_mod
    if brings_noise(context.run_config):
        from .masked_sum import masked_by_client

        config = config_of(str(context.run_config["ffalora"]))
        mod = partial(masked_by_client, bits=config.privacy.sum_bits, least=config.least_shares)
    return answered_with_keys(message, context, call_next, mod)


def app_that_asks(ask: Ask) -> ClientApp:
    """A ``ClientApp`` whose share of a round is what ``ask`` answers: a report, and arrays."""
    app = ClientApp(mods=[_mask])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """One client's share of a round."""
        return (_train_masked if is_masked(context.run_config) else _train)(message, context, ask)

    return app


def _train(message: Message, context: Context, ask: Ask) -> Message:
    arrays = message.content.array_records["numbers"].to_numpy_ndarrays()
    task = task_of(context.run_config, message.content.config_records["task"], masked=False)
    report, arrays = ask(context, task, arrays)
    content = RecordDict({"numbers": ArrayRecord(arrays), "report": ConfigRecord(report)})
    return Message(content, reply_to=message)


def _train_masked(message: Message, context: Context, ask: Ask) -> Message:
    """The stage of secure aggregation that trains, in the form that Flower's masks want."""
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.compat.common import recorddict_compat

    given = recorddict_compat.recorddict_to_fitins(message.content, keep_input=True)
    task = task_of(context.run_config, given.config, masked=True)
    report, sent = ask(context, task, parameters_to_ndarrays(given.parameters))
    result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters(sent), 1, report)
    return Message(recorddict_compat.fitres_to_recorddict(result, keep_input=False), reply_to=message)


def _ask_site(context: Context, task: dict[str, Any], arrays: list[np.ndarray]) -> tuple:
    return ask(Path(str(context.node_config["site"])), task, arrays)


client_app = app_that_asks(_ask_site)
