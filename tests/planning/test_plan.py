"""Plans: efficiency of a budget, and the choice among batches."""

from __future__ import annotations

import pytest
from small_runs import PRIVATE

from ffalora.cli.plan import text_of
from ffalora.federated.experiment import build
from ffalora.federated.simulate import simulate
from ffalora.planning.measure import Cost
from ffalora.planning.plan import Plan, choose, make_plans
from ffalora.privacy.accounting import PrivacyLedger
from ffalora.privacy.batch import ENOUGH, efficiency


def _plan(batch: int, efficient: float, seconds: float) -> Plan:
    return Plan(batch, 25, 2, 1.0, efficient, 1.0, 1.0, seconds, 4)


def test_one_step_on_all_samples_is_the_most_that_a_budget_allows():
    assert efficiency(500, 3.0, 1e-5, 500, 1, "rdp") == pytest.approx(1.0, rel=5e-3)


def test_larger_batches_are_more_efficient():
    found = [efficiency(1000, 3.0, 1e-5, batch, 50, "rdp") for batch in (50, 200, 1000)]
    assert found == sorted(found) and found[0] < 0.9 * found[-1]


@pytest.mark.long
@pytest.mark.parametrize(("sampling", "efficient"), [("poisson", 1.0), ("shuffled", 0.5)])
def test_the_efficiency_of_a_plan_is_that_of_its_own_noise(small, monkeypatch, sampling, efficient):
    """Steps on all samples waste nothing; where batches are not Poisson samples ε asks for twice the noise."""
    monkeypatch.setattr("ffalora.planning.plan.measure", lambda experiment: Cost(1.0, 1.0, 1.0, 0))
    budget = {"privacy__noise_multiplier": None, "privacy__target_epsilon": 3.0, "optimizer__batch_size": 1000}
    own = make_plans(small(**PRIVATE | budget | {"privacy__sampling": sampling})).own
    assert own.efficiency == pytest.approx(efficient, rel=5e-3)


def test_the_smallest_efficient_batch_is_chosen_and_time_limits_it():
    plans = [_plan(64, 0.3, 1), _plan(256, 0.7, 4), _plan(512, ENOUGH, 8), _plan(1024, 0.95, 16)]
    assert [choose(plans, s).batch for s in (float("inf"), 8, 5, 0.5)] == [512, 512, 256, 64]


@pytest.mark.long
def test_seconds_are_those_of_steps_samples_and_evaluations(small, monkeypatch):
    """Each client's step by itself, or all of them in one pass."""
    cost = Cost(seconds_per_step=10.0, seconds_per_sample=0.5, seconds_per_evaluation=1000.0, peak_bytes=0)
    monkeypatch.setattr("ffalora.planning.plan.measure", lambda experiment: cost)
    budget = {"privacy__noise_multiplier": None, "privacy__target_epsilon": 3.0, "federation__evaluate_every": 2}
    for one_pass, steps in (("never", 3), ("always", 1)):
        own = make_plans(small(**PRIVATE | budget | {"federation__one_pass": one_pass})).own
        assert own.seconds == pytest.approx(3 * 2 * (steps * 10.0 + 3 * 8 * 0.5) + 2 * 1000.0)


def test_an_empty_choice_is_refused():
    with pytest.raises(ValueError, match="plans is empty"):
        choose([])


@pytest.mark.long
@pytest.mark.parametrize("setting", ["poisson", "shuffled", "prior", "participation"])
def test_the_noise_and_the_rate_of_a_plan_are_those_of_the_run(small, tmp_path, setting):
    earlier = tmp_path / "earlier.json"
    PrivacyLedger(0, 50, 0.1, 2.0, 1e-5, 10, accountant="rdp", steps_taken=10).save(earlier)
    changes = {
        "poisson": {},
        "shuffled": {"privacy__sampling": "shuffled"},
        "prior": {"privacy__prior": [str(earlier)]},
        "participation": {"federation__participation": 0.34},
    }[setting]
    budget = {"privacy__noise_multiplier": None, "privacy__target_epsilon": 3.0, "optimizer__lr": "auto"}
    config = small(**PRIVATE | budget | {"optimizer__normalize": True} | changes)
    own, run = make_plans(config).own, build(config)
    largest = max((p.ledger for p in run.participants), key=lambda ledger: ledger.dataset_size)
    assert own.sigma == largest.noise_multiplier and own.lr == run.participants[0].lr


def test_a_plan_that_takes_longer_than_it_may_is_not_called_chosen(small, monkeypatch):
    monkeypatch.setattr("ffalora.planning.plan.measure", lambda experiment: Cost(1.0, 1.0, 1.0, 0))
    config = small(**PRIVATE | {"privacy__noise_multiplier": None, "privacy__target_epsilon": 3.0})
    long, short = make_plans(config), make_plans(config, seconds=5.0)
    assert long.fits and not short.fits and short.chosen.seconds > 5
    assert "No plan fits" not in text_of(long, 3.0) and "\nchosen " in text_of(long, 3.0)
    assert "No plan fits into --seconds; the shortest is:\n--optimizer.batch_size" in text_of(short, 3.0)
    assert "\nshortest " in text_of(short, 3.0) and "chosen" not in text_of(short, 3.0)


@pytest.mark.parametrize("strategy", ["ffa", "rolora"])
def test_the_bytes_of_a_plan_are_those_that_a_run_counts(small, tmp_path, strategy):
    """RoLoRA sends another factor in every other round."""
    budget = {"privacy__noise_multiplier": None, "privacy__target_epsilon": 3.0}
    methods = {"federation__strategy": strategy, "adapter__target_modules": ".*intermediate.dense"}
    config = small(**PRIVATE | budget | methods)
    rows = simulate(config, tmp_path / "run", progress=False).rounds
    assert make_plans(config).own.bytes_up == sum(row["bytes_up"] for row in rows) // 3


def test_a_client_sends_in_the_rounds_that_it_is_drawn_for(small, monkeypatch):
    monkeypatch.setattr("ffalora.planning.plan.measure", lambda experiment: Cost(1.0, 1.0, 1.0, 0))
    budget = {"privacy__noise_multiplier": None, "privacy__target_epsilon": 3.0}
    one, every = (make_plans(small(**PRIVATE | budget, federation__participation=p)).own for p in (0.34, 1.0))
    assert 3 * one.bytes_up == every.bytes_up
