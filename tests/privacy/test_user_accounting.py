"""ε of users whose samples are drawn and clipped apart: a group moves a step by as many as are drawn of it."""

import math

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import binom

from ffalora.privacy.accountants import ACCOUNTANTS, affordable_steps, epsilon, epsilon_of, noise_multiplier_for
from ffalora.privacy.accounting import LedgerMismatch, PrivacyLedger
from ffalora.privacy.replacement import sample_epsilon
from ffalora.privacy.spent import Spent, spent_from


def monte_carlo_delta(sigma, rate, group, steps, claimed, draws=400_000):
    """δ of the mixture of Gaussians at ``claimed``, of the worse direction, and its standard error: sums of sampled
    privacy losses, from the densities alone.
    """
    rng, weights = np.random.default_rng(0), binom.logpmf(np.arange(group + 1), group, rate)
    found = []
    for removed in (True, False):
        loss = np.zeros(draws)
        for _ in range(steps):
            x = sigma * rng.standard_normal(draws)
            if removed:
                x += rng.binomial(group, rate, draws)
            shifts = np.arange(group + 1)[:, None]
            ratio = logsumexp(weights[:, None] + (x * shifts - shifts**2 / 2) / sigma**2, axis=0)
            loss += ratio if removed else -ratio
        part = np.maximum(0.0, -np.expm1(np.minimum(claimed - loss, 0.0)))
        found.append((float(part.mean()), float(part.std() / draws**0.5)))
    return max(found)


@pytest.mark.long
@pytest.mark.parametrize(
    ("sigma", "rate", "group", "steps"), [(1.0, 0.1, 2, 8), (2.0, 0.05, 4, 12), (4.0, 0.2, 8, 6), (3.0, 0.5, 3, 4)]
)
def test_epsilon_of_a_group_is_that_of_sampled_privacy_losses(sigma, rate, group, steps):
    delta = 1e-2
    claimed = epsilon(sigma, rate, steps, delta, "pld", group=group)
    found, error = monte_carlo_delta(sigma, rate, group, steps, claimed)
    assert found <= delta + 5 * error, "under-reported"
    less, error = monte_carlo_delta(sigma, rate, group, steps, 0.98 * claimed)
    assert less > delta - 5 * error, "2% less would do"


@pytest.mark.long
@pytest.mark.parametrize("terms", [(1.0, 0.02, 100), (2.0, 0.05, 100), (4.0, 0.3, 50)])
def test_larger_groups_spend_more_and_no_accountant_less_than_the_tightest(terms):
    tight = [epsilon(*terms, 1e-5, "pld", group=group) for group in (1, 2, 4)]
    assert tight == sorted(tight) and tight[1] > 1.5 * tight[0]
    for accountant in ("rdp", "prv"):
        for group, least in zip((1, 2, 4), tight, strict=True):
            assert epsilon(*terms, 1e-5, accountant, group=group) >= least - 1e-3


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
@pytest.mark.parametrize("sampling", ["poisson", "full"])
def test_a_group_of_which_all_are_drawn_moves_the_sum_by_all_of_them(accountant, sampling):
    found = epsilon(8.0, 1.0, 20, 1e-5, accountant, sampling, group=4)
    assert found == pytest.approx(epsilon(2.0, 1.0, 20, 1e-5, accountant, sampling), rel=1e-9)


@pytest.mark.long
def test_noise_is_calibrated_for_groups_and_after_what_users_spent_before():
    prior = (Spent(4.0, 0.05, 20, unit="user", group=3),)
    for before in ((), prior):
        sigma = noise_multiplier_for(3.0, 1e-5, 0.05, 40, prior=before, group=3)
        history = [*before, Spent(sigma, 0.05, 40, unit="user", group=3)]
        assert 0.995 * 3 < epsilon_of(history, 1e-5) <= 3
        wanted = Spent(sigma, 0.05, 1000, unit="user", group=3)
        assert affordable_steps(3.0, 1e-5, wanted, prior=before) in range(40, 43)


@pytest.mark.parametrize("other", [Spent(1.0, 0.01, 100, unit="user"), Spent(40.0, 1.0, 5, unit="user", group=4)])
def test_groups_compose_with_what_users_spent_in_other_ways(other):
    part = Spent(1.0, 0.01, 100, unit="user", group=4)
    alone = [epsilon_of([one], 1e-5) for one in (part, other)]
    assert max(alone) < epsilon_of([part, other], 1e-5) < epsilon_of([part], 5e-6) + epsilon_of([other], 5e-6)


def users(**changes):
    terms = dict(sample_rate=0.1, noise_multiplier=2.0, delta=1e-4, max_steps=30, unit="user", group=4)
    return PrivacyLedger(client_id=0, dataset_size=200, **terms | changes)


def test_a_ledger_of_groups_counts_them_and_remembers_them():
    book = users()
    book.charge(30)
    assert book.epsilon() == pytest.approx(epsilon(2.0, 0.1, 30, 1e-4, group=4))
    assert book.epsilon() > 2 * users(group=1, steps_taken=30).epsilon()
    assert PrivacyLedger.from_state_dict(book.state_dict()) == book
    assert (book.drawn, users(group=1).drawn) == ("sample", "user") and book.adjacency == "zero-out one user"
    with pytest.raises(LedgerMismatch, match="group was 8 and is 4"):
        users().resume(users(group=8).state_dict())


def test_what_was_written_before_there_were_groups_is_read_as_none():
    state = users(group=1).state_dict()
    del state["group"]
    assert PrivacyLedger.from_state_dict(state).group == 1
    assert spent_from([1.0, 0.1, 5, "poisson", "sample", "zero-out"]) == Spent(1.0, 0.1, 5)
    assert spent_from(list(Spent(1.0, 0.1, 5, unit="user", group=3))).group == 3


@pytest.mark.parametrize("group", [0, -1, 2.5, True, None])
def test_a_group_that_is_no_number_of_records_is_refused(group):
    with pytest.raises(ValueError, match="must be numbers"):
        spent_from([1.0, 0.1, 5, "poisson", "user", "zero-out", group])


def test_groups_are_of_users_alone():
    with pytest.raises(ValueError, match="group=4 is of unit='user' alone"):
        users(unit="sample")
    with pytest.raises(ValueError, match="group must be a whole number of records, at least 1, got 0"):
        epsilon(1.0, 0.1, 5, 1e-5, group=0)


def test_clients_go_on_from_what_clients_spent():
    prior = (Spent(1.0, 0.2, 10, unit="client"),)
    sigma = noise_multiplier_for(8.0, 1e-3, 0.2, 10, prior=prior)
    assert math.isfinite(sigma) and epsilon_of([*prior, Spent(sigma, 0.2, 10, unit="client")], 1e-3) <= 8.0


def delta_of_a_changed_sample(sigma, rate, steps, claimed, draws=400_000):
    """δ at ``claimed`` where a user's clipped sum points the other way, and its standard error: sums of sampled privacy
    losses.
    """
    rng = np.random.default_rng(0)
    loss = np.zeros(draws)
    for _ in range(steps):
        x = sigma * rng.standard_normal(draws) + (rng.random(draws) < rate)
        here, there = ((-((x - mean) ** 2) / 2 / sigma**2 + math.log(rate)) for mean in (1, -1))
        away = -(x**2) / 2 / sigma**2 + (math.log1p(-rate) if rate < 1 else -math.inf)
        loss += np.logaddexp(away, here) - np.logaddexp(away, there)
    part = np.maximum(0.0, -np.expm1(np.minimum(claimed - loss, 0.0)))
    return float(part.mean()), float(part.std() / draws**0.5)


@pytest.mark.parametrize(("sigma", "rate", "steps"), [(1.0, 1.0, 1), (2.0, 0.3, 4), (3.0, 0.1, 20)])
def test_one_sample_of_a_user_spends_more_than_the_users_removal_and_at_most_what_is_said(sigma, rate, steps):
    history, delta = [Spent(sigma, rate, steps, unit="user")], 1e-2
    for accountant in ACCOUNTANTS:
        of_user, of_sample = epsilon_of(history, delta, accountant), sample_epsilon(history, delta, accountant)
        found, error = delta_of_a_changed_sample(sigma, rate, steps, of_sample)
        assert found - 4 * error <= delta
        assert of_user < of_sample <= epsilon(sigma, rate, steps, delta, accountant, "full")
    found, error = delta_of_a_changed_sample(sigma, rate, steps, epsilon_of(history, delta))
    assert found - 4 * error > 2 * delta


def test_where_samples_are_clipped_one_by_one_one_of_them_spends_what_it_does_at_sample_level():
    history = [Spent(1.0, 1.0, 2, unit="user", group=4)]
    assert sample_epsilon(history, 1e-5) == pytest.approx(epsilon(1.0, 1.0, 2, 1e-5))
    assert sample_epsilon([*history, Spent(1.0, 1.0, 1, unit="user")], 1e-5) > epsilon(1.0, 1.0, 3, 1e-5)
    assert sample_epsilon([Spent(0.1, 1.0, 90, unit="user")], 1e-5) == pytest.approx(
        epsilon(0.1, 1.0, 90, 1e-5, sampling="full")
    ), "ε is far beyond what a removal and its reverse can be counted at"
