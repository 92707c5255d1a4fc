"""One client at its own site: trains on its own data and keeps its own accounts, across restarts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ...config import Config, ConfigError, from_mapping, merge
from ...files.numbers import rounded_up
from ...privacy.accounting import PrivacyLedger
from ...privacy.accounts import ACCOUNT
from ...runs.data import data_fingerprint, load_run_data
from ...training.drawn import count_drawn
from ...training.participant import Participant
from ..accounts import open_run_accounts
from ..checkpoint import Checkpoint
from ..client_level import make_client_level
from ..cohort import Cohort, train_cohort
from ..experiment import Experiment, build, count_clients
from ..heads import given_texts
from ..ledgers import clipping_policy, make_ledger
from ..payload import packed
from ..rates import set_rates
from .answers import Answer
from .policy import SitePolicy
from .terms import Terms

#: How a federation's configuration becomes that of one client with data of its own.
_ALONE = {
    "clients.count": 1,
    "clients.partition": "iid",
    "clients.column": None,
    "clients.ranks": None,
    "clients.proportions": None,
    "clients.quantities": None,
    "federation.min_available": 1,
    "federation.robust_mean": None,
    "data.splits": None,
    "data.max_samples": None,
}


class NobodyWaits(RuntimeError):
    """Whoever asked for a round is gone; no further step is charged."""


class Site:
    """A client with its model, data, ledger and whatever it does not share, all of which live in ``folder``. After an
    error it is of no use: make another one, which goes on from the folder.

    Args:
        config: the federation's, the same for all.
        client: its id, 0 … clients.count - 1.
        folder: where ledger and personal state are kept, durably; never sent.
        data: its own data file or folder; None takes its share of the configuration's data (simulations, tests).
        policy: what this site allows, whatever ``config`` says (default: ``SitePolicy()``).
        labels: the federation's classes in order, by which data of its own is numbered; None numbers its own classes.
        ledger: name or folder of its data's ledger, which no server chooses; None takes the name of the data.

    Raises:
        ConfigError: an id out of range, or what the policy does not allow. DataError: classes that the federation does
        not have, or more samples than the policy or the run says.
    """

    def __init__(
        self,
        config: Config,
        client: int,
        folder: Path,
        data: str | None = None,
        policy: SitePolicy | None = None,
        labels: Sequence[str] | None = None,
        ledger: str | None = None,
    ):
        self.policy = policy or SitePolicy()
        config = config.with_noise(self.policy.noise)
        self.policy.check_run(config)
        self.client, self.folder = client, folder
        self.experiment = _build(config, client, self.policy.allowed_data(data), labels, self.policy.labels)
        if config.privacy.at_clients:
            owners, (own,) = self.experiment.partition.owners, self._own
            self.policy.check_size(count_drawn(config.privacy, owners, own.samples))
        self.terms = Terms.of(self.experiment)
        self.policy.check_digests(self.terms.model, self.terms.frozen, self.experiment.data.label_names)
        self.server = self.experiment.strategy.begin()
        frozen, level = self.experiment.strategy.wire.fingerprint(), self.experiment.client_level
        path = folder / f"client-{client}.safetensors"
        self._config, self._checkpoint = config, Checkpoint(path, config, self.server, self._own, level, frozen)
        if path.exists():
            self._checkpoint.load()
        self._accounts = open_run_accounts(
            self.experiment, folder, folder / f"{ACCOUNT}-{client}", resume=True, ledger=ledger, is_site=True
        )
        self._is_wanted: Callable[[], bool] = lambda: True
        self.experiment.on_charge(self._charge)
        self._check_ledgers()
        for own in self._own:  # steps that a kill cut off were charged: their noise and samples are not used again
            own.steps_taken = max(own.steps_taken, own.ledger.steps_taken if own.ledger is not None else 0)

    def train(
        self, round_number: int, numbers: np.ndarray, terms: Terms, is_wanted: Callable[[], bool] = lambda: True
    ) -> Answer:
        """Local training of a round, from what the server sent.

        Args:
            round_number: from 0.
            numbers: float32, what ``Wire.download`` gave.
            terms: the server's model, frozen factors, classes and data; they must be this client's too.
            is_wanted: whether somebody still waits for the answer; asked before each step is charged.

        Raises:
            ConfigError: a term differs, or the run has no such round. ValueError: the wrong count of numbers.
            PrivacyBudgetSpent: the ledger does not cover the round; nothing was charged.
            NobodyWaits: in mid-round; the steps before are charged.
        """
        strategy, (own,) = self.experiment.strategy, self._own
        terms.check(self.terms, self.client)
        if not 0 <= round_number < self._config.federation.rounds:
            raise ConfigError(f"round {round_number}: the run's are 0 … {self._config.federation.rounds - 1}")
        self._check_ledgers()
        self._is_wanted = is_wanted
        self.server.round = round_number
        strategy.wire.adopt(self.server, torch.from_numpy(np.array(numbers, dtype=np.float32)))
        strategy.load(self.server, trains=True)
        rows = strategy.start(self.server, [self.client])
        start = rows[0].clone()
        cohort = Cohort([own], [self.experiment.config.federation.local_steps], [True])
        level = self.experiment.client_level
        if level is not None:
            level.ledger.charge(noise=level.noise.mode)
            if self.experiment.charged is not None:
                self.experiment.charged(self.experiment.ledgers)
        if own.ledger is not None and own.ledger.steps_left < cohort.steps[0]:
            own.ledger.charge(cohort.steps[0])  # raises, and says why
        train_cohort(self.experiment, self.server, cohort, rows)
        if level is not None:
            update = strategy.wire.trained_layout(self.server).payload(start - rows[0])
            sent, numbers_sent = [level.share(update, self.client, round_number)], None
        else:
            sent = packed(self._config, strategy, self.server, self.client, rows[0])
            numbers_sent = strategy.wire.upload(self.server, rows[0]).cpu().numpy()
        strategy.remember(self.server, self.client, rows[0])
        self.folder.mkdir(parents=True, exist_ok=True)
        self._checkpoint.save()
        reports = self.policy.reports
        ledger = own.ledger if level is None else level.ledger
        account = ledger if "epsilon" in reports else None
        size = len(own.samples) if own.ledger is None or own.ledger.size_is_public else own.ledger.dataset_size
        return Answer(
            client=self.client,
            numbers=numbers_sent,
            samples=size if "samples" in reports else None,
            epsilon=None if account is None else rounded_up(account.epsilon(), decimals=2),
            final_epsilon=None if account is None else rounded_up(account.final_epsilon(), decimals=2),
            arrays=sent,
        )

    @property
    def numbers_up(self) -> int:
        """How many numbers this client sends in a round."""
        return self.experiment.strategy.wire.numbers_up(self.server, self.client)

    def _check_ledgers(self) -> None:
        """Refuses to go on where, with what other runs have spent on the same records, policy or budget says so."""
        self._accounts.look_up(self.experiment.ledgers)
        for spent in self.experiment.ledgers.values():
            self.policy.check_ledger(spent)

    def _charge(self, ledgers: Mapping[str, PrivacyLedger]) -> None:
        """Charges a step durably, unless nobody would get what comes of it."""
        if not self._is_wanted():
            raise NobodyWaits(f"client {self.client}: whoever asked for round {self.server.round + 1} has gone")
        self._accounts.charge(ledgers)

    @property
    def _own(self) -> list[Participant]:
        return self.experiment.participants


def _build(
    config: Config, client: int, data: str | None, labels: Sequence[str] | None, mapping: Mapping[str, str]
) -> Experiment:
    """What a client trains with: on data of its own, all of it; else on its share of the configuration's."""
    if data is None:
        experiment = build(config, caches_layers=False)
        _check_id(client, len(experiment.participants))
        experiment.participants = [experiment.participants[client]]
        return experiment
    clients = count_clients(config)
    if clients is None:
        raise ConfigError(
            "clients.partition='column' without clients.count: a site that holds its own data alone cannot count the "
            "clients of all; set clients.count in the federation's configuration"
        )
    _check_id(client, clients)
    by_shares = config.privacy.noise_at == "clients"
    shares_alone = {"privacy.dropouts": 0, "privacy.colluders": 0, "federation.participation": 1.0} if by_shares else {}
    labelled, public = given_texts(config)  # by the name of the federation's data, which is not the site's own
    texts = {"data.label_texts": labelled or None, "data.public_texts": public or None}
    alone = merge(config.model_dump(mode="json"), _ALONE | shares_alone | texts | {"data.name": data})
    own = from_mapping(alone)
    loaded = load_run_data(own, only="train", class_names=labels, class_map=mapping)
    loaded.splits[own.data.evaluate_on] = loaded.train.select(range(1))  # a site evaluates nothing
    experiment = build(own, caches_layers=False, data=loaded, clients=clients)
    config = config.model_copy(update={"optimizer": experiment.config.optimizer})  # with the batch of this site
    experiment.strategy = type(experiment.strategy)(experiment.adapters, config, clients)
    samples = experiment.participants[0].samples
    ledger = None
    if config.privacy.at_clients:
        steps, owners = config.federation.steps, experiment.partition.owners
        fingerprint = data_fingerprint(own, experiment.train, samples, owners)
        ledger = make_ledger(config, client, count_drawn(config.privacy, owners, samples), steps, fingerprint)
    experiment.participants = [Participant(client, samples, ledger, adaptive=clipping_policy(config, ledger))]
    if by_shares:
        fingerprint = data_fingerprint(own, experiment.train, range(len(experiment.train)))
        experiment.client_level = make_client_level(config, clients, fingerprint, experiment.adapters.layout.size)
    set_rates(config, experiment.loaded, experiment.adapters, experiment.participants, clients)
    return experiment


def _check_id(client: int, clients: int) -> None:
    if not 0 <= client < clients:
        raise ConfigError(f"client={client}: the configuration has clients 0 … {clients - 1}")
