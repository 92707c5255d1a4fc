"""Sums and counts of one client: what a sample can change, what is charged, and what the server makes of them."""

import math

import pytest
import torch
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import clustered

from ffalora.baselines import Budget, ClientFeatures, class_means, noise_of, prototypes, release_sums
from ffalora.baselines.means import ClassMeans, ReleasedSums, class_sums, joint_sensitivity
from ffalora.privacy.accounting import PrivacyBudgetSpent
from ffalora.privacy.noise import SecureNoise
from ffalora.privacy.spent import Spent


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), samples=st.integers(1, 20), size=st.floats(-6, 6))
def test_one_sample_moves_sums_and_counts_by_at_most_the_joint_sensitivity(seed, samples, size):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, 5, generator=generator) * 10.0**size
    labels = torch.randint(3, (samples,), generator=generator)
    whole = class_sums(features, labels, 3)
    without = class_sums(features[1:], labels[1:], 3)
    assert float((whole - without).norm()) <= joint_sensitivity(samples) * (1 + 1e-9)


def test_the_bound_is_reached_by_a_long_sample():
    total = class_sums(torch.tensor([[300.0, 400.0]]), torch.tensor([1]), 2)
    assert float(total.norm()) == pytest.approx(math.sqrt(1.25), rel=1e-5)
    assert float(total[0].abs().sum()) == 0.0


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_sample_that_is_not_finite_contributes_nothing(broken):
    features, labels = torch.ones(3, 4), torch.tensor([0, 1, 1])
    features[1, 2] = broken
    assert torch.equal(class_sums(features, labels, 2), class_sums(features[[0, 2]], labels[[0, 2]], 2))


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 6.0])
def test_a_release_spends_the_target_and_not_more(epsilon):
    ledger = Budget(epsilon, 1e-5).ledger(0, 50, 50, 1)
    curve = privacy_loss_distribution.from_gaussian_mechanism(ledger.noise_multiplier)
    assert 0.99 * epsilon <= curve.get_epsilon_for_delta(1e-5) <= epsilon * (1 + 1e-6)


def test_what_was_spent_on_the_data_before_counts_towards_the_target():
    prior = (Spent(2.0, 1.0, 1),)
    ledger = Budget(3.0, 1e-5, prior=prior).ledger(0, 50, 50, 1)
    together = 1 / math.hypot(1 / ledger.noise_multiplier, 1 / 2.0)
    curve = privacy_loss_distribution.from_gaussian_mechanism(together)
    assert 0.99 * 3.0 <= curve.get_epsilon_for_delta(1e-5) <= 3.0 * (1 + 1e-6)
    ledger.charge(1)
    assert 0.99 * 3.0 <= ledger.epsilon() <= 3.0


def test_the_noise_has_the_standard_deviation_that_is_charged():
    client = ClientFeatures(3, torch.zeros(40, 4000), torch.zeros(40, dtype=torch.int64))
    ledger = Budget(1.0, 1e-5).ledger(3, 40, 40, 1)
    released = release_sums(client, 2, ledger, noise_of("class means", 0))
    assert released.std == pytest.approx(ledger.noise_multiplier * math.sqrt(1.25), rel=1e-9)
    assert float(released.sums.std()) == pytest.approx(released.std, rel=0.05)


def test_secure_noise_differs_from_release_to_release_and_seeded_noise_does_not():
    (client, *_), _ = clustered(samples=30)

    def sums(noise):
        return release_sums(client, 2, Budget(1.0, 1e-5).ledger(0, 30, 30, 1), noise).sums

    assert torch.equal(sums(noise_of("class means", 7)), sums(noise_of("class means", 7)))
    assert not torch.equal(sums(SecureNoise()), sums(SecureNoise()))
    assert not torch.equal(sums(noise_of("class means", 7)), sums(noise_of("linear probe", 7)))


def test_a_release_is_charged_and_a_second_one_is_refused():
    (client, *_), _ = clustered(samples=30)
    ledger = Budget(1.0, 1e-5).ledger(0, 30, 30, 1)
    release_sums(client, 2, ledger, noise_of("class means", 0))
    assert ledger.steps_taken == 1
    with pytest.raises(PrivacyBudgetSpent):
        release_sums(client, 2, ledger, noise_of("class means", 1))


def test_a_ledger_of_subsampled_steps_or_other_data_is_refused():
    (client, *_), _ = clustered(samples=30)
    for ledger in (Budget(1.0, 1e-5).ledger(0, 30, 10, 1), Budget(1.0, 1e-5).ledger(0, 31, 31, 1)):
        with pytest.raises(ValueError, match="read all 30 samples in one step"):
            release_sums(client, 2, ledger, noise_of("class means", 0))
        assert ledger.steps_taken == 0


def released(sums, counts, std):
    return ReleasedSums(torch.tensor(sums).double(), torch.tensor(counts).double(), std)


def test_without_noise_the_means_are_those_of_all_samples():
    means = class_means(
        [released([[2.0, 0.0], [0.0, 1.0]], [4.0, 2.0], 0.0), released([[2.0, 0.0], [0.0, 3.0]], [4.0, 6.0], 0.0)]
    )
    assert torch.allclose(means.centre + means.deviations, torch.tensor([[0.5, 0.0], [0.0, 0.5]]))


def test_under_heavy_noise_the_means_are_those_that_the_class_texts_suggest():
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    means = class_means([released([[900.0, -700.0], [-20.0, 800.0]], [10.0, 10.0], 1e4)], directions)
    guess = directions - directions.mean(0)
    cosine = torch.nn.functional.cosine_similarity(means.deviations, guess, dim=1)
    assert float(cosine.min()) > 0.999


def test_at_a_large_budget_new_samples_are_classified_by_the_means():
    clients, centres = clustered(samples=400)
    sums = [release_sums(c, 2, Budget(8.0, 1e-5).ledger(c.client_id, 400, 400, 1), noise_of("m", 0)) for c in clients]
    classifier = class_means(sums, prototypes(centres.flip(0), [1, 1])).classifier()
    (other, *_), _ = clustered(samples=400, seed=0, clients=3)
    assert classifier.accuracy(other.features, other.labels) > 0.95


def test_the_class_of_the_nearest_mean_is_predicted_however_far_classes_are_from_the_centre():
    generator = torch.Generator().manual_seed(4)
    directions = torch.nn.functional.normalize(torch.randn(6, 20, generator=generator), dim=1)
    means = ClassMeans(torch.randn(20, generator=generator), directions * torch.tensor([0, 0.2, 0.5, 1, 2, 3])[:, None])
    x = means.centre + torch.randn(500, 20, generator=generator)
    nearest = torch.cdist(x, means.centre + means.deviations).argmin(1)
    assert torch.equal(means.classifier().predict(x), nearest)


def test_sums_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="at least one client"):
        class_means([])
    with pytest.raises(ValueError, match="differ in shape"):
        class_means([released([[1.0], [1.0]], [1.0, 1.0], 0.0), released([[1.0, 1.0]], [1.0], 0.0)])
