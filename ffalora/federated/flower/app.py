"""``ServerApp`` of a federation; Flower loads it by name from a generated app folder.

The run's configuration holds ``ffalora`` (the configuration as YAML), ``output`` (the server's folder), ``resume``
(whether it may hold a run that is to be continued), ``secagg``, ``secagg-range`` and ``timeout`` (seconds that a round
waits for answers).
"""

from __future__ import annotations

import traceback
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ...files.locks import locked
from .asked import config_of
from .output import FAILURE, SERVER
from .server import serve

server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """The server's rounds; what stops them is written into the output folder too, and a lock shows that it lives."""
    run = context.run_config
    output, config = Path(str(run["output"])), config_of(str(run["ffalora"]))
    with locked(output / SERVER):
        (output / FAILURE).unlink(missing_ok=True)  # of a server that was stopped before
        try:
            limit = float(run["secagg-range"]) if run["secagg"] else None
            serve(grid, context, config, output, float(run["timeout"]), limit, resume=bool(run["resume"]))
        except Exception:
            (output / FAILURE).write_text(traceback.format_exc(), encoding="utf-8")
            raise
