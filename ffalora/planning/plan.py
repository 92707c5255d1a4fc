"""Batch and steps that a privacy budget is best spent with, and what they cost on this machine.

The rule, chosen on movie reviews and tweets: 25 rounds of 2 steps, and the smallest batch n/2^k that spends ε well (see
``privacy.batch``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..config import Config, ConfigError
from ..federated.cohort import trains_in_one_pass
from ..federated.experiment import Experiment, build
from ..federated.ledgers import make_ledger
from ..federated.rates import feature_width, rates_of, variance_of
from ..privacy.batch import ENOUGH, HALVINGS, efficiency_of
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
        seconds: of all rounds on this machine: the clients that are drawn train, one after another or together, and
            the global model is evaluated. Not what comes before the first round (imports, reading, baselines).
        bytes_up: of one client in all rounds, of which it is drawn for its share.
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
        fits: whether the chosen plan takes no longer than it may; where none does, it is the shortest.
    """

    sizes: tuple[int, ...]
    numbers: int
    chosen: Plan
    others: tuple[Plan, ...]
    own: Plan
    cost: Cost
    fits: bool = True


def choose(plans: Sequence[Plan], seconds: float = math.inf) -> Plan:
    """The smallest batch of efficiency 0.85 that ``seconds`` allow; else the largest that they do; where they allow
    none, the smallest, which takes the least time.

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

    Nothing that depends on the data but their number enters the choice, and, where ``seconds`` bound it, the time that
    samples of their lengths take; the steps that are timed are forgotten.

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
    plans = [_plan(experiment, batch, ROUNDS, LOCAL_STEPS, cost) for batch in batches]
    federation, batch = config.federation, experiment.config.optimizer.batch
    own = _plan(experiment, batch, federation.rounds, federation.local_steps, cost)
    chosen = choose(plans, seconds)
    others = tuple(plan for plan in plans if plan != chosen)
    return Plans(tuple(sizes), experiment.adapters.layout.size, chosen, others, own, cost, chosen.seconds <= seconds)


def _plan(experiment: Experiment, batch: int, rounds: int, local_steps: int, cost: Cost) -> Plan:
    config, steps = with_schedule(experiment.config, batch, rounds, local_steps), rounds * local_steps
    held = [p.ledger for p in experiment.participants if p.ledger is not None]
    ledgers = [make_ledger(config, one.client_id, one.dataset_size, steps, "") for one in held]
    variance, target = variance_of(config, ledgers, len(ledgers)) or 0.0, config.privacy.target_epsilon or 0.0
    samples = sum(one.expected_batch for one in ledgers) * config.federation.participation
    server, clients = experiment.strategy.begin(), len(experiment.participants)
    sent = sum(experiment.bytes_up(replace(server, round=number)) for number in range(rounds))
    return Plan(
        batch=batch,
        rounds=rounds,
        local_steps=local_steps,
        sigma=max(ledgers, key=lambda one: one.dataset_size).noise_multiplier,
        efficiency=min(efficiency_of(one, target) for one in ledgers),
        signal_to_noise=SIGNAL / math.sqrt(variance * feature_width(experiment.loaded) / steps),
        lr=rates_of(config, experiment.loaded, experiment.adapters, variance, steps)[0],
        seconds=_seconds(experiment, config, samples * _samples_of_a_draw(experiment), cost),
        bytes_up=round(sent * config.federation.cohort(clients) / clients),
    )


def _seconds(experiment: Experiment, config: Config, samples: float, cost: Cost) -> float:
    """Of a run of ``config``, whose clients pass ``samples`` through the model in each local step, all together."""
    federation = config.federation
    clients = federation.cohort(len(experiment.participants))
    apart = 1 if trains_in_one_pass(replace(experiment, config=config), clients) else clients
    step = apart * cost.seconds_per_step + samples * cost.seconds_per_sample
    evaluations = math.ceil(federation.rounds / federation.evaluate_every)
    return federation.steps * step + evaluations * cost.seconds_per_evaluation


def with_schedule(config: Config, batch: int, rounds: int, local_steps: int) -> Config:
    """The configuration with another batch and other steps."""
    federation = config.federation.model_copy(update={"rounds": rounds, "local_steps": local_steps})
    optimizer = config.optimizer.model_copy(update={"batch_size": batch})
    return config.model_copy(update={"federation": federation, "optimizer": optimizer})


def _samples_of_a_draw(experiment: Experiment) -> float:
    """Samples that pass for each sample, or user, that is drawn: on average over all."""
    privacy, owners = experiment.config.privacy, experiment.partition.owners
    if owners is None or not privacy.draws_users:
        return 1.0
    return float(np.bincount(owners.single).clip(max=privacy.samples_per_user).mean())
