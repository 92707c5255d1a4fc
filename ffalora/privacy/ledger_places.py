"""Where the ledgers of data sets live."""

from __future__ import annotations

import os
import re
from pathlib import Path

FOLDER_VARIABLE = "FFALORA_LEDGERS"


def ledger_folder(named: str | None, data: str) -> Path:
    """Where the ledger of a data set is, or would be.

    Args:
        named: its name, or the path of its folder (anything with a separator); None takes the name of the data.
        data: what the data is called in the configuration.
    """
    if named is not None and (os.sep in named or "/" in named):
        return Path(named).expanduser()
    name = re.sub(r"[^\w.+-]+", "-", named or Path(data).stem).strip("-.") or "data"
    return ledgers_folder() / name


def ledgers_folder() -> Path:
    """Where named ledgers live: ``FFALORA_LEDGERS``, else ``.ffalora/ledgers`` in the user's home."""
    given = os.environ.get(FOLDER_VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".ffalora" / "ledgers"
