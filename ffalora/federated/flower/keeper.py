"""A site as a service: the process that trains and Flower's SuperNode, each brought back when it ends."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from .processes import Processes, environment


@dataclass(frozen=True)
class SiteTerms:
    """What a site says of itself, whatever a run asks for.

    Attributes:
        client: its id. folder: where its accounts, its door and its logs are.
        data: a file or folder of its own; None takes its share of the configuration's (simulations, tests).
        policy: a file, see ``SitePolicy``; None for the defaults. ledger: name or folder of its data's ledger.
    """

    client: int
    folder: str
    data: str | None = None
    policy: str | None = None
    ledger: str | None = None

    def to_text(self) -> str:
        """As JSON, for a command line."""
        return json.dumps(asdict(self))


def keep_site(terms: SiteTerms, supernode: Sequence[str]) -> NoReturn:
    """Runs a site until this process is ended, which ends all that it started, however it ends.

    Args:
        terms: of the site. supernode: options of ``flower-supernode``, as Flower documents them.

    Raises:
        ConfigError: Flower is not installed.
    """
    folder = Path(terms.folder).resolve()
    processes = Processes(folder / "logs", environment())
    with processes:
        for name, arguments in {
            "trainer": [terms.to_text()],
            "supernode": [*supernode, "--node-config", f'site="{folder}"'],
        }.items():
            processes.start(name, [sys.executable, "-m", f"{__package__}.{name}", *arguments])
        while True:
            processes.bring_back()
            time.sleep(0.5)
