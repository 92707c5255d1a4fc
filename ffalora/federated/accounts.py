"""Where the steps of a run are charged: its folder, and the ledger of its data set."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from ..config import ConfigError
from ..data.records import client_digests, record_digests, user_digests
from ..privacy.accounting import PrivacyBudgetSpent
from ..privacy.accounts import Accounts, open_accounts
from ..privacy.data_ledger import Records, find_data_ledger
from .experiment import Experiment


def open_run_accounts(
    experiment: Experiment, folder: Path, account: Path, resume: bool, ledger: str | None = None, is_site: bool = False
) -> Accounts:
    """Opens the accounts of an experiment; with secure noise, every step is charged there from now on.

    A secure run is charged to the ledger of its data set; a seeded one is only written down, and only where a ledger
    was named.

    Args:
        experiment: of one method and seed.
        folder: of the ledgers' files. account: the file by which the data set's ledger knows the run.
        resume: go on from these files.
        is_site: a site keeps its files also where noise is seeded.
        ledger: name or folder of the data set's ledger, instead of the data's own name.

    Raises:
        ConfigError: a ledger was named, and nothing is protected.
        LedgerMismatch, PrivacyBudgetSpent: see :func:`~ffalora.privacy.accounts.open_accounts`.
    """
    config, ledgers = experiment.config, experiment.ledgers
    if ledger and not ledgers:
        raise ConfigError(
            f"privacy.ledger={ledger!r} with privacy.unit='none': nothing bounds what such a run reveals of its "
            "records, and a ledger would go on as if it had revealed nothing; set privacy.unit, or leave the ledger out"
        )
    is_secure = config.privacy.is_secure
    data_ledger = find_data_ledger(ledger, config.data.name) if ledgers and (is_secure or ledger) else None
    what = "a choice" if config.privacy.trials > 1 else f"{config.federation.strategy}, seed {config.seed}"
    run = f"{what}, {account.parent.resolve()}"
    is_durable = is_secure or is_site
    accounts = open_accounts(
        ledgers, folder, resume, is_secure, is_durable, data_ledger, _records(experiment), account, run
    )
    if resume:
        _begin_noise_anew(experiment)
    if is_durable:
        experiment.on_charge(accounts.charge)
    return accounts


def _begin_noise_anew(experiment: Experiment) -> None:
    """Charges what was begun with correlated noise that no checkpoint holds, because it was secure.

    Raises:
        PrivacyBudgetSpent: nobody has steps left after it.
    """
    ledgers = [p.ledger for p in experiment.participants if p.ledger is not None and p.correlated is None]
    going = [ledger for ledger in ledgers if ledger.correlation is not None and ledger.steps_left]
    for ledger in going:
        ledger.begin_anew()
    if going and not any(ledger.steps_left for ledger in going):
        raise PrivacyBudgetSpent(
            f"this run cannot go on: its noise is correlated over {going[0].period} steps, what it depends on was "
            "secret and is gone, and to begin anew is charged as another mechanism, for which no budget is left. "
            "Start a new run, whose prior holds what was spent"
        )


def _records(experiment: Experiment) -> dict[str, Records]:
    """For each ledger, a function that digests what it is about: records, users, or, for the population, clients and
    everybody's records (by which the ledger also finds runs that dealt the same rows among other clients). A site that
    takes its share of rows which others have theirs of is one client with that share.
    """
    owners, partition = experiment.partition.owners, experiment.partition
    here = [p.client_id for p in experiment.participants]
    if experiment.client_level is not None:
        is_share = len(here) < len(partition)
        is_named = is_share or experiment.config.clients.partition == "column"
        names = [partition.names[client] for client in here] if is_named else None
        rows = partition.indices[here[0]] if is_share else np.arange(len(experiment.train))
        return {
            name: lambda: client_digests(names) + record_digests(experiment.data, rows) for name in experiment.ledgers
        }
    held = {str(p.client_id): p.samples for p in experiment.participants}
    if owners is not None:
        return {name: partial(user_digests, owners, held[name]) for name in experiment.ledgers}
    return {name: partial(record_digests, experiment.data, held[name]) for name in experiment.ledgers}
