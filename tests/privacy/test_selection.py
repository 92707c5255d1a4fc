"""A private choice among trials: what it costs beside one of them and a sweep, wherever steps are counted."""

import math

import numpy as np
import pytest

from ffalora.privacy.accountants import ACCOUNTANTS, epsilon_of, noise_multiplier_for
from ffalora.privacy.accounting import LedgerMismatch, PrivacyBudgetSpent, PrivacyLedger
from ffalora.privacy.protocols import epsilon_table, price_of_choice
from ffalora.privacy.spent import Spent, largest, spent_from

ONE = Spent(1.5, 0.05, 100)


@pytest.mark.parametrize("trials", [2.0, 12.0, 200.0])
def test_epsilon_is_that_of_the_theorem_and_never_below_it(trials):
    """Theorem 2 by hand, for a Gaussian mechanism, over a fine grid of both orders."""
    sigma, delta = 4.0, 1e-6
    orders = np.linspace(1.01, 300, 30_000)
    divergence = orders / (2 * sigma**2)
    constant = 2 * np.min((1 - 1 / orders) * divergence + math.log(trials) / orders)
    whole = divergence + constant + math.log(trials) / (orders - 1)
    by_hand = np.min(whole + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1))
    found = epsilon_of([Spent(sigma, 1.0, 1).chosen(trials)], delta)
    assert by_hand * (1 - 1e-6) <= found < by_hand * 1.05


def test_epsilon_is_that_of_an_independent_implementation():
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    step = dp_event.PoissonSampledDpEvent(ONE.sample_rate, dp_event.GaussianDpEvent(ONE.noise_multiplier))
    event = dp_event.RepeatAndSelectDpEvent(dp_event.SelfComposedDpEvent(step, ONE.steps), 10.0, 1.0)
    theirs = RdpAccountant().compose(event).get_epsilon(1e-5)
    assert epsilon_of([ONE.chosen(10.0)], 1e-5) == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_a_choice_costs_more_than_a_trial_and_less_than_a_sweep_of_many(accountant):
    one, chosen = epsilon_of([ONE], 1e-5, accountant), epsilon_of([ONE.chosen(30.0)], 1e-5, accountant)
    assert one < chosen < epsilon_of([ONE._replace(steps=3000)], 1e-5, accountant)


@pytest.mark.parametrize("trials", [math.inf, math.nan, 0.5])
def test_the_price_of_a_number_of_trials_that_cannot_be_is_refused(trials):
    [row, *_] = epsilon_table(2000, 100, 100, 1e-5, noise_multiplier=1.5)
    with pytest.raises(ValueError, match=f"trials.*got {trials}"):
        price_of_choice(row, trials)


def test_two_choices_cost_more_than_one_with_twice_the_steps():
    """Merged into one entry they stay two: each pays for its own number of trials."""
    chosen = ONE.chosen(10.0)
    twice = epsilon_of([chosen, chosen], 1e-5)
    assert twice == epsilon_of([chosen._replace(steps=2)], 1e-5) == epsilon_of(largest([[chosen, chosen]]), 1e-5)
    assert twice > epsilon_of([ONE._replace(steps=200).chosen(10.0)], 1e-5)


def test_other_steps_before_a_choice_are_part_of_its_epsilon():
    alone, with_more = epsilon_of([ONE.chosen(10.0)], 1e-5), epsilon_of([ONE.chosen(10.0), ONE], 1e-5)
    assert alone < with_more < alone + epsilon_of([ONE], 1e-5, "rdp")


def test_noise_for_a_choice_spends_the_target_and_no_more():
    sigma = noise_multiplier_for(6.0, 1e-5, 0.1, 50, trials=10.0)
    assert 0.998 * 6 < epsilon_of([Spent(sigma, 0.1, 50).chosen(10.0)], 1e-5) <= 6
    assert sigma > noise_multiplier_for(6.0, 1e-5, 0.1, 50)


def _ledger(**changes):
    terms = {"dataset_size": 1000, "sample_rate": 0.1, "noise_multiplier": 2.0, "delta": 1e-5, "max_steps": 20}
    return PrivacyLedger(client_id=0, **terms | {"trials": 10.0} | changes)


def test_the_first_step_spends_the_whole_choice():
    ledger = _ledger()
    assert ledger.epsilon() == 0
    ledger.charge()
    first = ledger.epsilon()
    ledger.charge(19)
    assert first == ledger.epsilon() == ledger.final_epsilon() == epsilon_of([ledger.steps(20)], 1e-5) > 0
    assert ledger.steps(20) == Spent(2.0, 0.1, 20).chosen(10.0)


def test_a_target_below_the_choice_allows_no_step_of_it():
    whole = _ledger().final_epsilon()
    assert _ledger(target_epsilon=whole * 1.001).steps_allowed == 20
    with pytest.raises(PrivacyBudgetSpent):
        _ledger(target_epsilon=whole * 0.999).charge()


def test_ledgers_and_lists_of_steps_survive_the_disk_and_older_ones_are_no_choices():
    ledger = _ledger(steps_taken=3, prior=(ONE.chosen(4.0),))
    assert PrivacyLedger.from_state_dict(ledger.state_dict()) == ledger
    old = {name: value for name, value in ledger.state_dict().items() if name != "trials"}
    assert PrivacyLedger.from_state_dict(old).trials == 1
    with pytest.raises(LedgerMismatch, match="trials was 1"):
        ledger.resume(old)
    assert spent_from(list(ONE.chosen(4.0))) == ONE.chosen(4.0)
    assert spent_from(list(ONE)[:6]) == spent_from(list(ONE)[:7]) == ONE


@pytest.mark.parametrize("most", [10, 30])
def test_a_trial_goes_on_with_as_many_steps_as_those_before_it_had(most):
    """A choice counts its trials' steps by ``max_steps``: fewer would state less than earlier trials spent."""
    with pytest.raises(LedgerMismatch, match=f"max_steps was 20 and is {most}"):
        _ledger(max_steps=most).resume(_ledger(steps_taken=3).state_dict())


@pytest.mark.parametrize("trials", [0.5, math.inf, math.nan])
def test_numbers_of_trials_out_of_range_are_refused(trials):
    with pytest.raises(ValueError, match="trials must"):
        _ledger(trials=trials)
    with pytest.raises(ValueError, match="trials"):
        epsilon_of([ONE._replace(trials=trials)], 1e-5)
