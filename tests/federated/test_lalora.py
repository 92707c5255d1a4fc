"""LA-LoRA: every local step is a step of one factor alone, beside the other one of the same client."""

import pytest
import torch
from small_runs import PRIVATE

from ffalora.config import ConfigError
from ffalora.federated.cohort import draw_cohort, train_cohort
from ffalora.federated.experiment import build
from ffalora.federated.profile import profile_run
from ffalora.federated.simulate import run_round
from ffalora.training.engine import Engine

FACTORS = {"b": "lora_B", "a": "lora_A"}


@pytest.fixture
def seen(monkeypatch):
    """What each call of ``Engine.train`` trained, and how it changed its rows."""
    found, original = [], Engine.train

    def train(engine, cohort, state, steps, **how):
        names, before = {place.tensor for place in engine.adapters.layout.places}, state.clone()
        result = original(engine, cohort, state, steps, **how)
        found.append((cohort[0].client_id, names, steps, before, state.clone()))
        return result

    monkeypatch.setattr(Engine, "train", train)
    return found


def _trained(experiment):
    """Rows of the first round's clients before and after their local training."""
    server = experiment.strategy.begin()
    experiment.strategy.load(server, trains=True)
    cohort = draw_cohort(experiment, 0)
    before = experiment.strategy.start(server, cohort.ids)
    rows = before.clone()
    train_cohort(experiment, server, cohort, rows)
    return before, rows


def test_a_round_is_stochastic_gradient_descent_on_one_factor_after_the_other(small):
    """Against ordinary autograd on a model that holds each client's own factors."""
    experiment = build(small(federation__strategy="lalora", federation__local_steps=4))
    start, rows = _trained(experiment)
    model, layout = experiment.engine.model, experiment.strategy.layout
    for client, ended in zip(experiment.participants, rows, strict=True):
        client.steps_taken, row = 0, start[0].clone()
        for turn in "baba":
            layout.scatter(row)
            inputs, targets = experiment.train.collate(experiment.engine.sample(client))
            factors = [getattr(layer, FACTORS[turn]) for layer in experiment.adapters.layers.values()]
            for factor in factors:
                factor.requires_grad_(True)
            found = torch.autograd.grad(experiment.task.losses(model(**inputs), targets).mean(), factors)
            with torch.no_grad():
                for factor, gradient in zip(factors, found, strict=True):
                    factor -= 0.5 * gradient
            row, client.steps_taken = layout.gather(), client.steps_taken + 1
        assert float((row - ended).norm()) < 1e-4 * float((row - start[0]).norm())


def test_each_step_moves_one_factor_and_the_head_is_charged_and_noised_once(small, seen):
    experiment = build(
        small(federation__strategy="lalora", federation__local_steps=3, adapter__head="trained", **PRIVATE)
    )
    _trained(experiment)
    turns = [names & set(FACTORS.values()) for _, names, *_ in seen]
    assert turns == [{"lora_B"}, {"lora_A"}, {"lora_B"}] * 3
    assert all({"weight", "bias"} <= names for _, names, *_ in seen)
    for _, _, steps, before, after in seen:
        assert steps == 1
        assert float((before != after).float().mean()) > 0.9, "all of the turn's columns carry noise"
    assert [client.steps_taken for client in experiment.participants] == [3, 3, 3]
    assert [client.ledger.steps_taken for client in experiment.participants] == [3, 3, 3]


@pytest.mark.parametrize("changes", [{}, PRIVATE, PRIVATE | {"optimizer__name": "adamw", "optimizer__lr": 0.01}])
def test_with_one_local_step_a_round_it_is_rolora(small, changes):
    ended = []
    for name in ("lalora", "rolora"):
        experiment = build(
            small(federation__strategy=name, federation__local_steps=1, federation__one_pass="never", **changes)
        )
        server = experiment.strategy.begin()
        gaps = [run_round(experiment, server)["update_gap"] for _ in range(3)]
        assert max(gaps) < 1e-6
        ended.append(server.row)
    assert torch.equal(*ended)


def test_each_factor_has_momentum_of_its_own(small, seen):
    """Momentum carries the second step of a factor on from its first one, and never moves the other."""
    plain, carried = (
        build(small(federation__strategy="lalora", federation__local_steps=4, optimizer__momentum=m)) for m in (0, 0.9)
    )
    _trained(plain)
    without, _ = [step[3:] for step in seen[:4]], seen.clear()
    _trained(carried)
    assert [names for _, names, *_ in seen[:4]] == [{"lora_B"}, {"lora_A"}, {"lora_B"}, {"lora_A"}]
    with_it = [step[3:] for step in seen[:4]]
    assert all(torch.equal(with_it[i][1], without[i][1]) for i in (0, 1)), "first steps of each factor are the same"
    first = with_it[0][1] - with_it[0][0]
    third, usual = with_it[2][1] - with_it[2][0], without[2][1] - without[2][0]
    assert float((third - usual - 0.9 * first).norm()) < 1e-4 * float(third.norm())


def test_moments_that_would_outlive_a_round_are_refused(small):
    with pytest.raises(ConfigError, match=r"keep_moments=True.*lalora"):
        build(small(federation__strategy="lalora", optimizer__keep_moments=True))


def test_a_profile_takes_turns_as_a_round_does(small, seen, tmp_path):
    found = profile_run(small(federation__strategy="lalora", **PRIVATE), tmp_path, steps=2, warmup=0)
    assert [names for _, names, *_ in seen] == [{"lora_B"}, {"lora_A"}] and found.samples > 0
