"""Canaries among the clients, where whole clients are protected: each sends one direction, much longer than C."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from ..config import Config
from ..federated.cohort import Cohort, train_cohort
from ..federated.experiment import build
from ..privacy.accounting import PrivacyLedger
from ..privacy.client_level import SERVER_ID, ClientLevel
from ..privacy.noise import SecureNoise
from ..privacy.sampling import SeededDraw
from ..training.sensitivity import secret_noise
from .canaries import LONGER, MOST_NUMBERS, ONE_DIRECTION, CanaryTest, expected_bound, guess, sound_scores
from .directions import Directions
from .progress import turns


class ClientCanaries:
    """The federation of a configuration with canaries among its clients, from the first round to the guesses.

    The server averages as it does in the run; what it does with the average (an optimiser, a new factor) costs nothing
    and is left out, so that sums can be read off the state.

    Args:
        config: of one method that protects clients.
        canaries: how many, each with a direction of its own.
        rng: of the canaries and their coins.

    Attributes:
        steps, planned: rounds taken, and those of the run.
        delta: δ of the claim: the run's, or one over the clients and canaries where that is less.
    """

    def __init__(self, config: Config, canaries: int, rng: np.random.Generator):
        self.experiment = build(config)
        level, layout = self.experiment.client_level, self.experiment.adapters.layout
        if level is None:
            raise ValueError(f"privacy.unit={config.privacy.unit!r}: clients are not what is protected")
        self.rng, self.steps, self.planned = rng, 0, config.federation.rounds
        most = min(canaries, MOST_NUMBERS // layout.width)
        [self.columns] = Directions.draw(layout, [0], [1.0], most, rng).columns
        self.signs = rng.choice(np.array([-1.0, 1.0], dtype=np.float32), len(self.columns))
        self.included = rng.random(len(self.columns)) < 0.5
        self.clients = [dataclasses.replace(one) for one in self.experiment.participants]
        ledger, noise, draw = level.ledger, level.noise, level.draw
        if not isinstance(noise, SecureNoise):
            noise, draw = secret_noise(), SeededDraw(secret_noise().key % 2**63)
        population, shares = len(self.clients) + int(self.included.sum()), level.shares
        if shares is not None:
            shares = dataclasses.replace(shares, clients=config.federation.cohort(population), dropouts=0, colluders=0)
        self.delta = min(ledger.delta, 1 / population)
        ledger = PrivacyLedger(
            SERVER_ID,
            population,
            ledger.sample_rate,
            ledger.noise_multiplier,
            self.delta,
            self.planned,
            accountant=ledger.accountant,
            sampling=ledger.sampling,
            unit="client",
        )
        self.level = ClientLevel(ledger, level.max_update_norm, noise, draw, clipping=level.clipping, shares=shares)
        self.seen = torch.zeros(layout.width, dtype=torch.float64)

    def train(self, deadline: float, progress: bool) -> None:
        """Runs the rounds, or as many as there is time for."""
        experiment, level, present = self.experiment, self.level, np.flatnonzero(self.included)
        server, index = experiment.strategy.begin(), experiment.adapters.layout.parameter_index()
        for _ in turns(self.planned, deadline, "round", progress):
            experiment.strategy.load(server, trains=True)
            drawn, count = level.open_round(self.steps), len(self.clients)
            real = [self.clients[i] for i in drawn[drawn < count].tolist()]
            rows = experiment.strategy.start(server, [one.client_id for one in real])
            if real:
                steps = experiment.config.federation.local_steps
                train_cohort(experiment, server, Cohort(real, [steps] * len(real), [True] * len(real)), rows)
            which = present[drawn[drawn >= count] - count]
            sent, columns = server.row.repeat(len(which), 1), torch.from_numpy(self.columns[which]).to(rows.device)
            length = torch.from_numpy(self.signs[which]).to(rows.device) * LONGER * level.limit
            sent[torch.arange(len(which)), columns] -= length
            before = server.row.clone()
            level.close_round_(
                server.row, torch.cat([rows, sent]), self.steps, None if index is None else index.to(rows.device)
            )
            self.seen += (before - server.row).double().cpu() * level.expected_cohort
            self.steps, server.round = self.steps + 1, server.round + 1

    def claimed_epsilon(self) -> float:
        """Of the rounds taken."""
        return self.level.ledger.epsilon()

    def tests(self, significance: float) -> list[CanaryTest]:
        """How well an attacker who sees every round's average guesses who was in."""
        ledger = self.level.ledger
        scores = self.seen[torch.from_numpy(self.columns)].numpy() / self.level.limit * self.signs
        found = guess(ONE_DIRECTION, "every round", scores, self.included, self.delta, significance)
        terms = self.steps, ledger.sample_rate, ledger.noise_multiplier, self.rng
        expected = expected_bound(
            found.trials, lambda there: sound_scores(there, *terms), self.delta, significance, self.rng
        )
        return [dataclasses.replace(found, expected=expected)]
