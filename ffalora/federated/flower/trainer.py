"""The process of a site that stays: it holds the model and the accounts, and trains whenever a message asks.

Run as ``python -m ffalora.federated.flower.trainer`` with what ``SiteTerms`` holds, as JSON; ``ffalora site`` does.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from ...config import ConfigError
from .asked import brings_noise, config_of
from .door import callers, send
from .keeper import SiteTerms
from .policy import load_policy
from .rounds import check_range
from .site import Site
from .terms import Terms

logger = logging.getLogger(__name__)


class Trainer:
    """Answers the rounds of whatever runs ask this site, with one :class:`Site` as long as nothing about it changes.

    A round that ends in an error leaves the site to be built anew from its folder, which holds all that was charged.
    """

    def __init__(self, terms: SiteTerms):
        self.terms = terms
        self._site: Site | None = None
        self._made_of: tuple[str, ...] = ()

    def answer(
        self, task: Mapping[str, Any], arrays: list[np.ndarray], is_wanted: Callable[[], bool]
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """What this site says and sends for a round.

        Args:
            task: what :func:`~ffalora.federated.flower.asked.task_of` gives.
            arrays: what the server sent.
            is_wanted: whether somebody still waits; no step is charged once nobody does.

        Raises:
            ConfigError: the noise comes in shares, and this one would leave without a mask; nothing is charged.
            Whatever the site refuses with.
        """
        (numbers,), terms = arrays, Terms.from_text(str(task["terms"]))
        if brings_noise(task) and task.get("masked") is not True:
            raise ConfigError(
                "privacy.noise_at='clients': a share of the noise protects nobody by itself, and this task would send "
                "it without a mask; run the federation with this version's client app, which masks it"
            )
        site, self._site = self._find(str(task["ffalora"]), terms), None
        answer = site.train(int(task["round"]), numbers, terms, is_wanted)
        sent = list(answer.arrays)
        if "limit" in task:
            sent = [np.asarray(answer.numbers, dtype=np.float64)]
            check_range(sent[0], float(task["limit"]), site.numbers_up)
        self._site = site
        return dict(answer.report()), sent

    def _find(self, config: str, terms: Terms) -> Site:
        """The site of the last round where run, classes and policy are the same; else a fresh one."""
        own = self.terms
        policy = "" if own.policy is None else Path(own.policy).read_text(encoding="utf-8")
        made_of = (config, policy, json.dumps(terms.labels))
        if self._site is not None and made_of == self._made_of:
            return self._site
        self._site, self._made_of = None, made_of  # the old model goes before the new one comes
        return Site(
            config_of(config),
            own.client,
            Path(own.folder),
            data=own.data,
            policy=load_policy(own.policy),
            labels=terms.labels,
            ledger=own.ledger,
        )


def serve_door(terms: SiteTerms) -> None:
    """Answers whoever asks, one after another, until this process is ended."""
    trainer = Trainer(terms)
    for connection, task, arrays in callers(Path(terms.folder)):
        with connection:
            try:
                _answer(trainer, connection, task, arrays)
            except (EOFError, OSError) as error:
                logger.warning("client %d: whoever asked has gone (%s)", terms.client, type(error).__name__)


def _answer(trainer: Trainer, connection: Connection, task: Mapping[str, Any], arrays: list[np.ndarray]) -> None:
    try:  # an asker says nothing more: whatever can be read then is the end of its process
        report, sent = trainer.answer(task, arrays, is_wanted=lambda: not connection.poll())
    except Exception as error:
        logger.exception("client %d refuses or fails", trainer.terms.client)
        send(connection, {"refused": f"client {trainer.terms.client}: {type(error).__name__}{_told(error)}"})
        return
    send(connection, report, sent)


def _told(error: Exception) -> str:
    """What leaves the site of an error beside its kind: which term of the run it refuses. What else errors say may
    quote its rows, or tell how many it has.
    """
    return f": {error}" if isinstance(error, ConfigError) else "; the site's log says why"


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    serve_door(SiteTerms(**json.loads(sys.argv[1])))
