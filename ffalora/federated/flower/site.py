"""One client at its own site: trains on its own data and keeps its own accounts, across restarts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...config import Config, ConfigError, from_mapping, merge
from ...runs.data import data_fingerprint
from ...training.participant import Participant
from ..checkpoint import load_checkpoint, resume_ledgers, save_checkpoint, save_ledgers
from ..cohort import Cohort, train_cohort
from ..experiment import Experiment, build, make_ledger


@dataclass(frozen=True)
class Answer:
    """What a client sends back.

    Attributes:
        client: its id.
        samples: its data-set size, for weights by size.
        numbers: float32, what ``Strategy.upload`` made of its row; None where secure aggregation hides it.
        epsilon: what it has spent, by its own ledger; None without sample-level privacy.
        loss: mean loss of its last logical step (computed on private data).
    """

    client: int
    samples: int
    numbers: np.ndarray | None
    epsilon: float | None
    loss: float


class Site:
    """A client with its model, data, ledger and whatever it does not share, all of which live in ``folder``.

    Args:
        config: the federation's, the same for all.
        client: its id, 0 … clients.count - 1.
        folder: where ledger and personal state are kept, durably; never sent.
        data: its own data file or folder; None takes its share of the configuration's data (simulations, tests).
        shared_streams: noise and sampling from the configuration's seed, which the server knows. For equality tests.

    Raises:
        ConfigError: an id out of range, or seeded noise without ``shared_streams``.
    """

    def __init__(
        self, config: Config, client: int, folder: Path, data: str | None = None, shared_streams: bool = False
    ):
        if config.privacy.unit == "sample" and config.privacy.noise == "seeded" and not shared_streams:
            raise ConfigError(
                "privacy.noise='seeded': whoever knows the configuration can subtract this noise, so real clients "
                "refuse it; set privacy.noise to secure (or, in tests only, share the streams)"
            )
        self.client, self.folder = client, folder
        self.experiment = _build(config, client, data)
        self.server = self.experiment.strategy.begin()
        self._config = config
        if self._checkpoint.exists():
            load_checkpoint(self._checkpoint, config, self.server, self._own, self.experiment.ledgers)
        resume_ledgers(folder, self.experiment.ledgers)
        for own in self._own:  # steps that a kill cut off were charged: their noise and samples are not used again
            own.steps_taken = max(own.steps_taken, own.ledger.steps_taken if own.ledger is not None else 0)
        self.experiment.on_charge(lambda ledgers: save_ledgers(folder, ledgers))

    def train(self, round_number: int, numbers: np.ndarray, fingerprint: str) -> Answer:
        """Local training of a round, from what the server sent.

        Args:
            round_number: from 0.
            numbers: float32, what ``Strategy.download`` gave.
            fingerprint: of the server's frozen factors; they must be this client's too.

        Raises:
            ConfigError: the frozen factors differ. ValueError: the wrong count of numbers.
            PrivacyBudgetSpent: the ledger does not cover the round; nothing was charged.
        """
        strategy, (own,) = self.experiment.strategy, self._own
        if fingerprint != strategy.fingerprint():
            raise ConfigError(
                f"client {self.client}: its frozen factors differ from the server's, so averages would mean nothing; "
                "give both the same adapter.seed, adapter.init, ranks and model"
            )
        self.server.round = round_number
        strategy.adopt(self.server, torch.from_numpy(np.array(numbers, dtype=np.float32)))
        strategy.begin_round(self.server)
        rows = strategy.start(self.server, [self.client])
        cohort = Cohort([own], [self.experiment.config.federation.local_steps], [True])
        if own.ledger is not None and own.ledger.steps_left < cohort.steps[0]:
            own.ledger.charge(cohort.steps[0])  # raises, and says why
        report = train_cohort(self.experiment, self.server, cohort, rows)
        strategy.remember(self.server, self.client, rows[0])
        self.folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(self._checkpoint, self._config, self.server, self._own, self.experiment.ledgers)
        return Answer(
            client=self.client,
            samples=len(own.samples),
            numbers=strategy.upload(rows[0]).cpu().numpy(),
            epsilon=None if own.ledger is None else own.ledger.epsilon(),
            loss=report.loss,
        )

    @property
    def _own(self) -> list[Participant]:
        return self.experiment.participants

    @property
    def _checkpoint(self) -> Path:
        return self.folder / f"client-{self.client}.safetensors"


def _build(config: Config, client: int, data: str | None) -> Experiment:
    if data is not None:
        alone = {"data": {"name": data}, "clients": {"count": 1, "partition": "iid", "column": None, "ranks": None}}
        experiment = build(from_mapping(merge(config.model_dump(mode="json"), alone | {"federation.min_available": 1})))
        experiment.strategy = type(experiment.strategy)(experiment.adapters, config, config.clients.count or client + 1)
        samples = experiment.participants[0].samples
        steps = config.federation.rounds * config.federation.local_steps
        ledger = None
        if config.privacy.unit == "sample":
            fingerprint = data_fingerprint(experiment.config, experiment.train, samples)
            ledger = make_ledger(config, client, len(samples), steps, fingerprint)
        experiment.participants = [Participant(client, samples, ledger)]
        return experiment
    experiment = build(config, caches_layers=False)
    if not 0 <= client < len(experiment.participants):
        raise ConfigError(f"client={client}: the configuration has clients 0 … {len(experiment.participants) - 1}")
    experiment.participants = [experiment.participants[client]]
    return experiment
