"""Canaries among the samples of each client: trained with them by the run's own engine, then guessed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import Config, OptimizerConfig
from ..data.examples import Examples
from ..federated.experiment import Experiment, build, make_engine
from ..privacy.accounting import PrivacyLedger
from ..privacy.noise import SecureNoise
from ..privacy.sampling import SeededDraw
from ..training.admission import check_cohort, ledger_of
from ..training.cached_layers import cache_frozen_layers
from ..training.drawn import count_drawn
from ..training.engine import Engine
from ..training.gradients import segment_gradients
from ..training.optim import Moments
from ..training.participant import Participant
from ..training.rates import given_rate
from ..training.report import TrainingReport
from ..training.sensitivity import secret_noise
from . import correlated
from .canaries import (
    MOST_NUMBERS,
    ONE_DIRECTION,
    CanaryStep,
    CanaryTest,
    expected_bound,
    guess,
    losses_of,
    matched_scores,
    one_text,
    sound_scores,
    with_canaries,
)
from .directions import Directions
from .progress import turns

#: Scores of canaries, and a function from who is in to scores of a sound run.
Scores = tuple[NDArray, Callable[[NDArray], NDArray]]


class SampleCanaries:
    """The clients of a configuration with canaries among their samples, from the first step to the guesses.

    Args:
        config: of one method that protects samples, or users.
        canaries: of one direction, for each client; a tenth as many texts of each kind.
        rng: of the canaries and their coins.

    Attributes:
        steps, planned: logical steps taken, and those of the run.
        delta: δ of every claim: the run's, or one over the samples of a client with its canaries where that is less.
    """

    def __init__(self, config: Config, canaries: int, rng: np.random.Generator):
        experiment = build(config, caches_layers=False)
        self.rng, self.steps = rng, 0
        self.correlations = [ledger_of(p).correlation for p in experiment.participants]
        self.released: list[np.ndarray] = []  # of each step, along canaries' directions; who attacks knows the others
        layout, clients = experiment.adapters.layout, len(experiment.participants)
        texts = 0 if self.is_correlated else min(canaries * clients // 10, MOST_NUMBERS // layout.width)
        vocabulary = getattr(getattr(experiment.loaded.model, "config", None), "vocab_size", 0)
        data, kinds = with_canaries(experiment.train, vocabulary, texts if vocabulary else 0, rng)
        self.kinds = {kind: indices for kind, indices in kinds.items() if len(indices)}
        self.planned = config.federation.steps
        self.local_steps = config.federation.local_steps
        self.engine = _engine(experiment, data)
        self.directions = Directions.draw(layout, *self.engine.clipping_groups(), canaries, rng)
        each = len(self.directions)
        self.included, self.cohort = self._participants(experiment, len(data.labels), each)
        server = experiment.strategy.begin()
        experiment.strategy.load(server, trains=True)
        self.start = experiment.strategy.start(server, [p.client_id for p in self.cohort])
        self.state, self.seen = self.start.clone(), torch.zeros_like(self.start, dtype=torch.float64)
        self.one_pass = all(place.tensor != "lora_A" for place in layout.places)
        self.signs = rng.choice(np.array([-1.0, 1.0], dtype=np.float32), (len(self.cohort), each))
        self.limits, self.noise_std = torch.zeros(2, len(self.cohort), dtype=torch.float64)

    @property
    def own_columns(self) -> Tensor:
        """Those that canaries of one direction have to themselves, int64."""
        return torch.from_numpy(self.directions.columns.reshape(-1))

    @property
    def is_correlated(self) -> bool:
        """Whether the noise of different steps is."""
        return any(one is not None for one in self.correlations)

    def _participants(self, experiment: Experiment, n: int, each: int) -> tuple[np.ndarray, list[Participant]]:
        """Who of all canaries is in, bool by index less the first one's; and the clients with those that are."""
        first, clients = len(experiment.train), experiment.participants
        if experiment.partition.owners is not None:  # every canary is a user
            self.engine.owners = experiment.partition.owners.with_more(n - first + each * len(clients))
        included = self.rng.random(n - first + each * len(clients)) < 0.5
        held = []
        for row, one in enumerate(clients):
            texts = np.concatenate(
                [np.empty(0, np.int64), *(kind[row :: len(clients)] for kind in self.kinds.values())]
            )
            mine = np.concatenate([texts, n + each * row + np.arange(each)]).astype(np.int64)
            if not self.is_correlated:  # else those that are out add nothing, but keep their place in a turn
                mine = mine[included[mine - first]]
            held.append(np.concatenate([one.samples, mine]))
        counts = [count_drawn(self.engine.privacy, self.engine.owners, samples) for samples in held]
        self.delta = min(ledger_of(clients[0]).delta, 1 / max(counts))
        cohort = []
        for one, samples, count in zip(clients, held, counts, strict=True):
            ledger = ledger_of(one)
            fresh = PrivacyLedger(
                one.client_id,
                count,
                ledger.sample_rate,
                ledger.noise_multiplier,
                self.delta,
                ledger.max_steps,
                accountant=ledger.accountant,
                sampling=ledger.sampling,
                unit=ledger.unit,
                group=ledger.group,
                correlation=ledger.correlation,
            )
            cohort.append(replace(one, samples=samples, ledger=fresh, adaptive=None, lr=None))
        self.first, self.n = first, n
        return included, cohort

    def train(self, deadline: float, progress: bool) -> None:
        """Takes the run's steps, or as many as there is time for; the clients' states are averaged after each round."""
        engine, cohort, state = self.engine, self.cohort, self.state
        check_cohort(cohort, engine.privacy, not isinstance(engine.noise, SecureNoise), engine.owners)
        together = [slice(0, len(cohort))] if self.one_pass else [slice(i, i + 1) for i in range(len(cohort))]
        steps = [self._step(rows) for rows in together]
        expected = [ledger_of(p).expected_batch for p in cohort]
        factor = torch.tensor(expected, dtype=torch.float64, device=state.device)[:, None] / given_rate(
            engine.optimizer
        )
        for number in turns(self.planned, deadline, "step", progress):
            before = state.clone()
            for one in cohort:
                one.begin_noise(state.shape[1], state.device, seeded=False)
            for step in steps:
                step.run(TrainingReport(len(step.cohort)), torch.arange(len(step.cohort)), 1.0, number)
                step.finish()
            self.steps += 1
            seen = (before - state).double() * factor
            self.seen += seen
            self.released.append(self.directions.along(seen - torch.cat([step.others for step in steps])))
            if self.steps % self.local_steps == 0:
                state.copy_(state.mean(0).expand_as(state))

    def _step(self, rows: slice) -> CanaryStep:
        """Of some of the clients."""
        cohort, state = self.cohort[rows], self.state[rows]
        moments = Moments.zeros(self.engine.optimizer, len(cohort), state.shape[1], self.engine.device)
        step = CanaryStep(self.engine, cohort, state, None, 0.0, moments, None)
        step.directions = self.directions
        step.signs = self.signs.reshape(-1) * self.included[self.n - self.first :]
        self.limits[rows] = step.norms.cpu()
        self.noise_std[rows] = step.noise_std.cpu()
        return step

    def claimed_epsilon(self) -> float:
        """Of the steps taken: the largest of the clients'."""
        ledgers = [ledger_of(p) for p in self.cohort]
        return max(x.epsilon() for x in {(x.noise_multiplier, x.sample_rate): x for x in ledgers}.values())

    def tests(self, significance: float) -> list[CanaryTest]:
        """All guesses, each kind and each attacker with its share of the significance."""
        share, delta = significance / (1 + 2 * len(self.kinds)), self.delta
        there = self.included[self.n - self.first :]
        scores, sound = self._correlated() if self.is_correlated else self._independent()
        found = guess(ONE_DIRECTION, "every step", scores, there, delta, share)
        tests = [replace(found, expected=expected_bound(len(there), sound, delta, share, self.rng))]
        for kind, indices in self.kinds.items():
            there = self.included[indices - self.first]
            for sees, some in (("every step", self._matched(indices)), ("the final model", self._black_box(indices))):
                tests.append(guess(kind, sees, self._centred(some, indices), there, delta, share))
        return tests

    def _independent(self) -> Scores:
        """Scores of the canaries of one direction, by the sum of all steps, and what a sound run would give."""
        scores = np.sum(self.released, axis=0) / self.limits[:, None].numpy() * self.signs
        ledgers = [ledger_of(p) for p in self.cohort]
        sigma = sum(ledger.noise_multiplier for ledger in ledgers) / len(ledgers) / self.directions.strength
        rate = sum(ledger.sample_rate for ledger in ledgers) / len(ledgers)
        return scores.reshape(-1), lambda there: sound_scores(there, self.steps, rate, sigma, self.rng)

    def _correlated(self) -> Scores:
        """The same where the noise is correlated over steps."""
        every, sound, released = [], [], np.stack(self.released)
        for row, (one, correlation) in enumerate(zip(self.cohort, self.correlations, strict=True)):
            if correlation is None:
                continue
            ledger, seed, each = ledger_of(one), self.engine.seed, len(self.directions)
            turns = correlated.turns_of(correlation, seed, one.client_id, len(one.samples))[-each:]
            every.append(correlated.matched_scores(correlation, released[:, row] * self.signs[row], turns))
            every[-1] /= float(self.limits[row])
            sigma = ledger.noise_multiplier / self.directions.strength
            terms = correlation, turns, self.steps, ledger.sample_rate, sigma, self.rng
            sound.append(partial(correlated.sound_scores, *terms))
        return np.concatenate(every), lambda there: np.concatenate(
            [of(part) for of, part in zip(sound, np.split(there, len(sound)), strict=True)]
        )

    def _matched(self, indices: np.ndarray) -> np.ndarray:
        """How much of each canary's first gradient is in what its client sent."""
        rows, scores = self._gradients(indices), np.zeros(len(indices))
        for row, one in enumerate(self.cohort):
            mine = slice(row, None, len(self.cohort))
            ledger, steps = ledger_of(one), self.steps
            drawn = max((0.25 * (ledger.sample_rate * steps) ** 2 + ledger.sample_rate * steps / 2) ** 0.5, 1e-3)
            noise = float(self.noise_std[row]) * steps**0.5
            seen = self.seen[row].clone()
            seen[self.own_columns.to(seen.device)] = 0.0
            scores[mine] = matched_scores(rows[mine], seen, noise, drawn)
        return scores

    def _gradients(self, indices: np.ndarray) -> Tensor:
        """Clipped gradients of canaries at the start, without the columns of those of one direction."""
        engine, found = self.engine, []
        for some in np.array_split(indices, max(1, len(indices) // 32)):
            inputs, targets = engine.data.collate(some)
            rows = segment_gradients(
                engine.model,
                engine.adapters,
                engine.losses,
                inputs,
                targets,
                state=self.start[:1].clone(),
                rows=np.zeros(len(some), np.int64),
                arena=engine.arena,
                probe=engine.probe,
                packed=engine.packed,
            ).gradients.clone()
            rows *= (float(self.limits[0]) / rows.norm(dim=1, keepdim=True).clamp(min=1e-30)).clamp(max=1.0)
            rows[:, self.own_columns.to(rows.device)] = 0.0
            found.append(rows.cpu())
        return torch.cat(found)

    def _black_box(self, indices: np.ndarray) -> np.ndarray:
        """How far each canary's loss fell from the first model to the last."""
        engine, found = self.engine, []
        for row in (self.start, self.state):
            engine.adapters.load_state_(row.mean(0))
            found.append(losses_of(engine.model, engine.losses, engine.data, indices, engine.device))
        return found[0] - found[1]

    def _centred(self, scores: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Less the mean of the canaries of the same class, which moves with all samples of that class."""
        labels = self.engine.data.labels[indices]  # type: ignore[attr-defined]
        for label in np.unique(labels):
            scores[labels == label] -= scores[labels == label].mean()
        return scores


def _engine(experiment: Experiment, data: Examples) -> Engine:
    """The run's engine on the longer data. Plain descent: what an optimiser makes of noisy sums costs nothing, and they
    can be read off what it changes.
    """
    config, device, own = experiment.config, experiment.engine.device, experiment.config.optimizer
    first, limit = experiment.participants[0], config.privacy.max_grad_norm
    lr = given_rate(own) if first.lr is None else first.lr
    if own.name == "adamw":  # as large a step as a parameter takes there
        lr *= own.batch / max(ledger_of(first).noise_multiplier * limit, 1e-6)
    elif own.normalize:
        lr /= limit
    optimizer = OptimizerConfig(name="sgd", lr=lr, normalize=False, batch_size=own.batch, token_budget=own.token_budget)
    config = config.model_copy(update={"optimizer": optimizer})
    cached = cache_frozen_layers(
        config, experiment.loaded.model, experiment.adapters, data, one_text(data), len(experiment.partition), device
    )
    engine = make_engine(config, experiment.loaded, experiment.adapters, cached.train, experiment.task.losses, device)
    if not isinstance(engine.noise, SecureNoise):
        engine.noise, engine.draw = secret_noise(), SeededDraw(secret_noise().key % 2**63)
    return engine
