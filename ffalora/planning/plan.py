"""Batch and steps that a privacy budget is best spent with, and what they cost on this machine.

The rule, chosen on movie reviews and tweets: 25 rounds of 2 steps, and the smallest batch n/2^k that spends ε well (see
``privacy.batch``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config import Config, ConfigError
from ..federated.experiment import Experiment, build
from ..federated.rates import rates_of
from ..privacy.accountants import noise_multiplier_for
from ..privacy.batch import ENOUGH, HALVINGS, efficiency
from ..training.rates import SIGNAL
from .measure import Cost, measure

ROUNDS, LOCAL_STEPS = 25, 2


@dataclass(frozen=True)
class Plan:
    """One choice of batch and steps.

    Attributes:
        batch, rounds, local_steps: as in the configuration.
        sigma: noise multiplier of the largest client; efficiency: of the least efficient client, at most 1.
        signal_to_noise: length of what data say of sentences over that of the noise, in the mean of all steps.
        lr: what ``optimizer.lr: auto`` becomes.
        seconds: of all clients' training on this machine, one after another or together.
        bytes_up: of one client in all rounds.
    """

    batch: int
    rounds: int
    local_steps: int
    sigma: float
    efficiency: float
    signal_to_noise: float
    lr: float
    seconds: float
    bytes_up: int

    @property
    def steps(self) -> int:
        """Logical steps of each client."""
        return self.rounds * self.local_steps


@dataclass(frozen=True)
class Plans:
    """The plan that the rule chooses, and its neighbours.

    Attributes:
        sizes: samples of each client; numbers: trained; chosen: the plan; others: what else could be, with the
            configuration's own choice; own: that choice. cost: what was measured.
    """

    sizes: tuple[int, ...]
    numbers: int
    chosen: Plan
    others: tuple[Plan, ...]
    own: Plan
    cost: Cost


def choose(plans: Sequence[Plan], seconds: float = math.inf) -> Plan:
    """The smallest batch of efficiency 0.85 that ``seconds`` allow; else the largest that they do; else the smallest.

    Raises:
        ValueError: no plans.
    """
    if not plans:
        raise ValueError("plans is empty: there is nothing to choose from")
    ordered = sorted(plans, key=lambda plan: plan.batch)
    fitting = [plan for plan in ordered if plan.seconds <= seconds] or ordered[:1]
    return next((plan for plan in fitting if plan.efficiency >= ENOUGH), fitting[-1])


def make_plans(config: Config, seconds: float = math.inf) -> Plans:
    """Plans for the clients of a configuration, with times measured on a few samples of theirs.

    Nothing that depends on the data but their number enters the choice; the steps that are timed are forgotten.

    Raises:
        ConfigError: no ε to plan with. What building the run raises.
    """
    privacy = config.privacy
    if not privacy.at_clients or privacy.target_epsilon is None:
        raise ConfigError(
            f"privacy.target_epsilon={privacy.target_epsilon} with privacy.unit={privacy.unit!r}: a plan needs an ε to "
            "spend on samples or users; set privacy.unit to sample (or user) and give target_epsilon"
        )
    if privacy.mechanism != "independent":
        raise ConfigError(
            f"privacy.mechanism={privacy.mechanism!r}: plans are for independent noise; make one with "
            "privacy.mechanism=independent, and set the mechanism in the run"
        )
    experiment = build(config)
    sizes = [p.ledger.dataset_size for p in experiment.participants if p.ledger is not None]
    cost = measure(experiment)
    batches = sorted({max(1, math.ceil(max(sizes) / 2**k)) for k in range(HALVINGS)})
    plans = [_plan(experiment, sizes, batch, ROUNDS, LOCAL_STEPS, cost) for batch in batches]
    own = _plan(
        experiment,
        sizes,
        experiment.config.optimizer.batch,
        config.federation.rounds,
        config.federation.local_steps,
        cost,
    )
    chosen = choose(plans, seconds)
    others = tuple(plan for plan in plans if plan != chosen)
    return Plans(tuple(sizes), experiment.adapters.layout.size, chosen, others, own, cost)


def _plan(experiment: Experiment, sizes: Sequence[int], batch: int, rounds: int, local_steps: int, cost: Cost) -> Plan:
    config, steps = experiment.config, rounds * local_steps
    privacy = config.privacy
    target, delta, accountant = privacy.target_epsilon or 0.0, privacy.delta, privacy.accountant
    terms = [(size, min(batch, size)) for size in sizes]
    group = privacy.group
    sigmas = [noise_multiplier_for(target, delta, b / n, steps, accountant, group=group) for n, b in terms]
    weights = [n / sum(sizes) if config.federation.weighting == "size" else 1 / len(sizes) for n in sizes]
    variance = sum((w * s / b) ** 2 for w, s, (_, b) in zip(weights, sigmas, terms, strict=True))
    hidden = getattr(experiment.loaded.model.config, "hidden_size", 768)
    return Plan(
        batch=batch,
        rounds=rounds,
        local_steps=local_steps,
        sigma=sigmas[sizes.index(max(sizes))],
        efficiency=min(efficiency(n, target, delta, b, steps, group=group) for n, b in terms),
        signal_to_noise=SIGNAL / math.sqrt(variance * hidden / steps),
        lr=rates_of(config, experiment.loaded, experiment.adapters, variance, steps)[0],
        seconds=cost.seconds_per_sample * steps * sum(b for _, b in terms) * _samples_of_a_draw(experiment),
        bytes_up=rounds * experiment.strategy.wire.bytes_up(experiment.strategy.begin()),
    )


def _samples_of_a_draw(experiment: Experiment) -> float:
    """Samples that pass for each sample, or user, that is drawn: on average over all."""
    privacy, owners = experiment.config.privacy, experiment.partition.owners
    if owners is None or not privacy.draws_users:
        return 1.0
    return float(np.bincount(owners.single).clip(max=privacy.samples_per_user).mean())
