"""``ClientApp`` for Flower's simulation engine (Ray): each message is answered in one of the engine's processes.

Clients are those of the configuration, by the number of their node. Whichever process a message reaches makes the site
anew from its folder, which holds all that was charged: it costs the reading of model and data, and no two processes
ever go on from two copies of one ledger.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context

from .client import app_that_asks
from .output import POLICY


def _answer_here(context: Context, task: dict[str, Any], arrays: list[np.ndarray]) -> tuple:
    from .keeper import SiteTerms
    from .trainer import Trainer

    client, output = int(context.node_config["partition-id"]), Path(str(context.run_config["output"]))
    folder = output / "clients" / str(client)
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(SiteTerms(client, str(folder), policy=str(output / POLICY)))
    return trainer.answer(task, arrays, is_wanted=lambda: True)


client_app = app_that_asks(_answer_here)
