"""The probe: the same mechanism as a run, at the same ε, and a bound without privacy."""

import math
from dataclasses import replace

import pytest
import torch
from makers import clustered

from ffalora.baselines import Budget, ClientFeatures, LinearClassifier, ProbePlan, linear_probe, noise_of, plain_probe
from ffalora.baselines.probe import rate_of
from ffalora.privacy.accountants import epsilon
from ffalora.privacy.accounting import PrivacyBudgetSpent
from ffalora.privacy.sampling import SeededDraw
from ffalora.training.rates import SIGNAL

PLAN = ProbePlan(rounds=5, local_steps=2)


def ledgers_of(clients, target=6.0, batch=50, steps=PLAN.steps):
    return [Budget(target, 1e-5).ledger(c.client_id, len(c), batch, steps) for c in clients]


def trained(clients, ledgers, seed=0, plan=PLAN, **more):
    return linear_probe(clients, 2, plan, ledgers, SeededDraw(seed), noise_of("linear probe", seed), **more)


def test_a_probe_spends_the_target_on_each_client_and_not_more():
    clients, _ = clustered()
    ledgers = ledgers_of(clients, target=2.0)
    trained(clients, ledgers)
    for ledger in ledgers:
        assert ledger.steps_taken == PLAN.steps
        spent = epsilon(ledger.noise_multiplier, ledger.sample_rate, PLAN.steps, 1e-5, "pld")
        assert ledger.epsilon() == pytest.approx(spent) and 1.98 <= spent <= 2.0


def test_steps_beyond_the_budget_are_refused():
    clients, _ = clustered()
    ledgers = ledgers_of(clients)
    trained(clients, ledgers)
    with pytest.raises(PrivacyBudgetSpent):
        trained(clients, ledgers)


def test_new_samples_are_classified_at_a_large_budget():
    clients, _ = clustered(samples=400)
    other = clustered(samples=400, clients=3)[0][2]
    private = trained(clients, ledgers_of(clients, batch=100))
    assert private.accuracy(other.features, other.labels) > 0.9
    assert plain_probe(clients, 2).accuracy(other.features, other.labels) > 0.95


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    clients, _ = clustered()
    first, again, other = (trained(clients, ledgers_of(clients), seed=seed).weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_how_many_gradients_are_held_at_once_changes_nothing(monkeypatch):
    clients, _ = clustered()
    whole = trained(clients, ledgers_of(clients)).weight
    monkeypatch.setattr("ffalora.baselines.probe._NUMBERS", 1)
    assert torch.allclose(trained(clients, ledgers_of(clients)).weight, whole, atol=1e-6)


def test_the_length_of_features_changes_nothing():
    clients, _ = clustered()
    longer = [replace(c, features=c.features * 4) for c in clients]
    one, two = (trained(each, ledgers_of(each)).weight for each in (clients, longer))
    assert torch.allclose(one, two, atol=1e-5)


def test_all_noise_together_moves_each_number_as_far_as_the_rate_was_chosen_for():
    """On samples whose gradients vanish only the noise is left."""
    width, plan = 3000, ProbePlan(rounds=4, local_steps=3)
    clients = [ClientFeatures(c, torch.zeros(50, width), torch.zeros(50, dtype=torch.int64)) for c in range(2)]
    certain = LinearClassifier(torch.zeros(2, width), torch.tensor([1e4, -1e4]))
    ledgers = ledgers_of(clients, batch=10, steps=12)
    probe = trained(clients, ledgers, plan=plan, start=certain)
    of_mean = ledgers[0].noise_multiplier / 10 / math.sqrt(2 * 12)  # of each number, two clients and twelve steps
    expected = 1 / (1 + (of_mean / SIGNAL) ** 2 * width)
    assert float(probe.weight.std()) == pytest.approx(expected, rel=0.05)


def test_the_rate_falls_as_the_noise_grows():
    clients, _ = clustered()
    weights = torch.tensor([0.5, 0.5])
    rates = [rate_of(PLAN, ledgers_of(clients, target=target), weights, 12) for target in (8.0, 2.0, 0.5)]
    assert rates == sorted(rates, reverse=True)


def test_where_noise_drowns_the_data_a_probe_stays_where_it_started():
    clients, centres = clustered()
    start = LinearClassifier(centres * 5, torch.zeros(2))
    ledgers = ledgers_of(clients, target=1e-3, steps=1)
    probe = trained(clients, ledgers, plan=ProbePlan(rounds=1, local_steps=1), start=start)
    assert torch.allclose(probe.weight, start.weight, atol=1e-3)


def test_a_sample_that_is_not_finite_leaves_a_finite_probe():
    (first, second), _ = clustered()
    first.features[3] = math.nan
    assert trained([first, second], ledgers_of([first, second])).weight.isfinite().all()


def test_ledgers_of_other_clients_or_mechanisms_are_refused():
    clients, _ = clustered()
    with pytest.raises(ValueError, match="make one for each"):
        trained(clients, ledgers_of(clients)[::-1])
    shuffled = [replace(ledger, sampling="shuffled") for ledger in ledgers_of(clients)]
    with pytest.raises(ValueError, match="another mechanism"):
        trained(clients, shuffled)
    silent = [replace(ledger, noise_multiplier=0.0, target_epsilon=None) for ledger in ledgers_of(clients)]
    with pytest.raises(ValueError, match="plain_probe"):
        trained(clients, silent)


def test_a_class_that_nobody_holds_is_never_predicted_by_the_plain_probe():
    clients, _ = clustered()
    assert set(plain_probe(clients, 3).predict(clients[0].features).tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"features": torch.zeros(0, 3), "labels": torch.zeros(0, dtype=torch.int64)}, "n of at least 1"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "one a row of features"),
        ({"features": torch.zeros(200, 3, dtype=torch.float64)}, "float32"),
    ],
)
def test_features_and_labels_that_do_not_fit_are_refused(change, named):
    (client, *_), _ = clustered()
    with pytest.raises(ValueError, match=named):
        replace(client, **change)


def test_labels_beyond_the_classes_and_equal_ids_are_refused():
    (first, second), _ = clustered(classes=3)
    with pytest.raises(ValueError, match="labels must lie in 0"):
        plain_probe([first], 2)
    with pytest.raises(ValueError, match="client_id must be different"):
        plain_probe([first, replace(second, client_id=0)], 3)
