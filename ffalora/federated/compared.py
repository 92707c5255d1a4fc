"""What a run has to beat: the baselines, on its own clients, with its own privacy and number of steps."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..baselines import (
    Budget,
    ClientFeatures,
    ProbePlan,
    class_means,
    linear_probe,
    majority,
    mean_label,
    noise_of,
    plain_probe,
    release_sums,
    states_read_by,
    zero_shot,
)
from ..config import ConfigError
from ..data.examples import Examples
from ..files.numbers import rounded_up
from ..privacy.accounting import PrivacyLedger
from ..privacy.sampling import SeededDraw
from ..runs.folder import BASELINES, UNTRAINED_ANSWERS, write_json
from ..training.batches import physical_batches
from .experiment import Experiment
from .heads import head_layers
from .records import write_answers

_TOKENS = 8192
#: Names of the baselines in tables.
MAJORITY, TEXTS, MEANS, PROBE = "largest class", "class texts, no training", "private class means", "private probe"
WITHOUT_PRIVACY, UNTRAINED, COMMONEST = "probe without privacy", "untrained", "commonest answer"
CONSTANT = "best constant"


def compare(experiment: Experiment) -> list[dict[str, Any]]:
    """One row a baseline: ``name``, ``accuracy``, ``epsilon`` of the client that spends most (None: nothing of the
    clients' data is used, or all of it without privacy), ``about``, and ``is_bound`` where privacy is not kept, so that
    it is nothing to beat. A language model has itself before training, and the commonest answer where answers are a
    choice of few, and a regression the best constant, with ``metrics`` in the place of an accuracy.

    The private ones protect samples, and are left out where users are protected.
    With secure noise nothing is computed on the clients' data: it would spend their budget, or have no privacy at all.
    Call it before the first round, while the adapters are still zero.
    """
    config, data = experiment.config, experiment.data
    head = head_layers(experiment.loaded.model)
    if config.data.task == "causal-lm":
        return _of_language_model(experiment)
    count = len(experiment.evaluation)
    count = min(count, config.data.max_evaluation_samples or count)
    if config.data.task == "regression":
        return [_of_constant(np.asarray(experiment.evaluation.labels[:count], dtype=np.float64))]
    if not data.label_names:
        return []
    labels = torch.from_numpy(np.asarray(experiment.evaluation.labels[:count], dtype=np.int64))
    largest, share = majority(labels)
    rows = [_row(MAJORITY, share, f"always {data.label_names[largest]}, the largest class there")]
    if not head:
        return rows
    features = features_of(experiment, experiment.evaluation, np.arange(count))
    directions = None if experiment.labels is None else experiment.labels.directions
    if directions is not None:
        found = zero_shot(directions).accuracy(features, labels)
        rows.append(_row(TEXTS, found, "the class whose texts are nearest in the frozen model"))
    if config.privacy.is_secure:
        return rows
    every = torch.from_numpy(np.asarray(experiment.train.labels, dtype=np.int64))
    train = features_of(experiment, experiment.engine.data, np.arange(len(every)))
    clients = [ClientFeatures(p.client_id, train[p.samples], every[p.samples]) for p in experiment.participants]
    ledgers = [p.ledger for p in experiment.participants if p.ledger is not None and p.ledger.noise_multiplier > 0]
    protects_samples = config.privacy.unit == "sample" and config.privacy.sampling == "poisson"
    if len(ledgers) == len(clients) and protects_samples:
        rows += _private(experiment, clients, ledgers, directions, features, labels)
    unit = torch.nn.functional.normalize(features, dim=1)  # as long as those that it is fitted to
    bound = plain_probe(clients, len(data.label_names)).accuracy(unit, labels)
    return [*rows, _row(WITHOUT_PRIVACY, bound, "logistic regression on all clients' data in one place")]


def _row(name: str, accuracy: float, about: str, epsilon: float | None = None) -> dict[str, Any]:
    return {"name": name, "accuracy": round(accuracy, 6), "epsilon": epsilon, "about": about} | {
        "is_bound": name == WITHOUT_PRIVACY
    }


def _of_constant(labels: np.ndarray) -> dict[str, Any]:
    """The one number that is nearest to all labels, float64 ``[n]`` in their units."""
    number, error = mean_label(labels)
    about = f"always {number:.4g}, the mean there"
    return {"name": CONSTANT, "metrics": {"mse": error, "pearson": 0.0}, "epsilon": None, "about": about} | {
        "is_bound": False
    }


def _of_language_model(experiment: Experiment) -> list[dict[str, Any]]:
    """The pretrained model as it is, and the commonest answer."""
    found = {UNTRAINED: (experiment.evaluate(), "the pretrained model as it is")}
    commonest = experiment.answered.metrics_of_commonest() if experiment.answered else None
    if commonest is not None:
        found[COMMONEST] = commonest, "the commonest answer of the evaluated data, whatever is asked"
    return [
        {"name": name, "metrics": values, "epsilon": None, "about": about, "is_bound": False}
        for name, (values, about) in found.items()
    ]


def _private(
    experiment: Experiment,
    clients: list[ClientFeatures],
    ledgers: list[PrivacyLedger],
    directions: Tensor | None,
    features: Tensor,
    labels: Tensor,
) -> list[dict[str, Any]]:
    """Class means and the probe, each with a budget of its own as large as the run's."""
    config, classes = experiment.config, len(experiment.data.label_names or ())
    clients = [replace(c, features=torch.nn.functional.normalize(c.features, dim=1)) for c in clients]
    targets = [ledger.target_epsilon or ledger.final_epsilon() for ledger in ledgers]
    if not all(0 < target < math.inf for target in targets):
        return []
    fresh = [_independent(ledger, target) for ledger, target in zip(ledgers, targets, strict=True)]
    noise = noise_of(MEANS, config.seed)
    released, spent = [], []
    for client, ledger, target in zip(clients, ledgers, targets, strict=True):
        budget = Budget(target, ledger.delta, ledger.accountant, ledger.prior)
        own = budget.ledger(client.client_id, len(client), len(client), 1)
        released.append(release_sums(client, classes, own, noise))
        spent.append(own.epsilon())
    unit = torch.nn.functional.normalize(features, dim=1)
    means = class_means(released, directions).classifier().accuracy(unit, labels)
    rows = [_row(MEANS, means, "one noisy sum a class and client, nearest mean", rounded_up(max(spent)))]
    if any(ledger.dataset_size != len(client) for client, ledger in zip(clients, fresh, strict=True)):
        return rows  # a bound on the size is public, and not the size
    plan = ProbePlan(config.federation.rounds, config.federation.local_steps)
    start = None
    if experiment.labels is not None:
        part = float(features.norm(dim=1).mean()) / experiment.labels.length
        start = zero_shot(experiment.labels.directions, config.model.head_temperature * part)
    probe = linear_probe(
        clients, classes, plan, fresh, SeededDraw(config.seed), noise_of(PROBE, config.seed), start
    ).accuracy(unit, labels)
    about = f"a linear layer on the frozen model, {plan.steps} steps by DP-SGD"
    return [*rows, _row(PROBE, probe, about, rounded_up(max(ledger.epsilon() for ledger in fresh)))]


def _independent(ledger: PrivacyLedger, target: float) -> PrivacyLedger:
    """A fresh ledger of the same terms for independent noise, which spends as much."""
    if ledger.correlation is None:
        return replace(ledger, steps_taken=0)
    budget = Budget(target, ledger.delta, ledger.accountant, ledger.prior)
    return budget.ledger(ledger.client_id, ledger.dataset_size, ledger.expected_batch, ledger.max_steps)


@torch.inference_mode()
def features_of(experiment: Experiment, examples: Examples, indices: np.ndarray) -> Tensor:
    """What the head reads of samples, float32 ``[n,D]`` in their order."""
    model, device, head = experiment.loaded.model, experiment.engine.device, head_layers(experiment.loaded.model)[0]
    found: list[Tensor] = [torch.empty(0)] * len(indices)
    for batch in physical_batches(examples.lengths[indices], _TOKENS, overhead=256).batches:
        inputs, _ = examples.collate(indices[batch])
        with states_read_by(head) as read:
            model(**{name: value.to(device) for name, value in inputs.items()})
        for place, row in zip(batch, read[0], strict=True):
            found[place] = row
    return torch.stack(found)


def compared(experiment: Experiment, folder: Path) -> list[dict[str, Any]]:
    """The rows of :func:`compare`, once a run: they are kept in its folder. None with ``baselines: false``.

    Raises:
        ConfigError: what was kept is damaged.
    """
    path = folder / BASELINES
    if not experiment.config.baselines:
        return []
    if not path.exists():
        write_json(path, compare(experiment))
        write_answers(experiment, folder / UNTRAINED_ANSWERS)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}); remove it, and baselines are computed again") from None
