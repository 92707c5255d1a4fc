"""The audit: its statistics against simulation, its teeth, what it finds in a package broken on purpose."""

import math

import numpy as np
import pytest
from mutants import MUTANTS
from scipy import stats

from ffalora.audits.audit import audit_many_runs, audit_one_run, format_audits
from ffalora.audits.bounds import gaussian_bound, gaussian_epsilon, many_runs_bound, one_run_bound, one_run_p_value
from ffalora.privacy.accountants import epsilon, noise_multiplier_for

DELTA = 1e-7

# ---- bounds ----------------------------------------------------------------------------------------------------------


def test_pure_p_value_is_the_binomial_tail_of_randomised_response():
    assert one_run_p_value(100, 80, 70, 1.0, 0.0) == pytest.approx(stats.binom.sf(69, 80, math.e / (1 + math.e)))


def test_bound_exceeds_the_truth_of_randomised_response_no_more_often_than_stated():
    """The attack that the theorem is tight for: at significance 5%, more than 66 of 1,000 is chance below 1%."""
    rng, truth = np.random.default_rng(0), 1.5
    correct = rng.binomial(400, 1 / (1 + math.exp(-truth)), 1000)
    bounds = {c: one_run_bound(400, 400, c, 0.0, 0.05) for c in set(correct.tolist())}
    assert sum(bounds[c] > truth for c in correct.tolist()) <= 66


def test_delta_counts_for_the_attacker():
    """With probability δ a leak of everything: then every guess is right, and no small ε is disproved by it."""
    assert one_run_p_value(1000, 1000, 1000, 1.0, 0.01) >= 0.01
    assert one_run_bound(1000, 500, 400, 1e-9, 0.05) > one_run_bound(1000, 500, 400, 1e-3, 0.05)


def test_few_guesses_disprove_little():
    assert one_run_bound(100, 10, 10, 0.0, 0.05) == pytest.approx(math.log(0.05**0.1 / (1 - 0.05**0.1)), abs=1e-3)
    assert one_run_bound(100, 100, 50, 0.0, 0.05) == 0.0
    assert many_runs_bound(50, 100, 50, 100, 1e-5, 0.05) == 0.0
    assert gaussian_bound(50, 100, 50, 100, 1e-5, 0.05) == 0.0


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="correct ≤ guesses"):
        one_run_p_value(10, 5, 6, 1.0, 0.0)


@pytest.mark.parametrize("shift", [0.1, 0.5, 2.0])
def test_gaussian_epsilon_is_that_of_the_accountants(shift):
    assert gaussian_epsilon(shift, 1e-5) == pytest.approx(epsilon(1 / shift, 1.0, 1, 1e-5, "pld"), rel=2e-3)


# ---- teeth -----------------------------------------------------------------------------------------------------------


def _check_teeth(claimed: float, monkeypatch, clients: int = 1000) -> None:
    sigma = noise_multiplier_for(claimed, DELTA, 1.0, 1)
    sound = audit_one_run(sigma, DELTA, clients=clients)
    assert sound.holds
    assert sound.epsilon_lower >= claimed / 2
    MUTANTS["noise halved"](monkeypatch)
    broken = audit_one_run(sigma, DELTA, clients=clients)
    assert broken.epsilon_lower > broken.claimed_epsilon
    assert not broken.holds
    assert "DISPROVED" in format_audits([broken])


@pytest.mark.long
def test_audit_has_teeth(monkeypatch):
    _check_teeth(3.0, monkeypatch, clients=250)


@pytest.mark.slow
@pytest.mark.parametrize("claimed,clients", [(1.0, 1000), (3.0, 1000), (8.0, 2500)])
def test_full_audit_has_teeth(claimed, clients, monkeypatch):
    _check_teeth(claimed, monkeypatch, clients)


def test_many_runs_of_a_transformer_disprove_at_least_half_of_the_truth_and_no_more_than_it(monkeypatch):
    sigma = noise_multiplier_for(3.0, DELTA, 1.0, 1)
    sound = audit_many_runs(sigma, DELTA, runs=2000)
    assert 1.5 <= sound.epsilon_lower_gaussian <= sound.claimed_epsilon
    assert 0 < sound.epsilon_lower < sound.claimed_epsilon
    MUTANTS["noise halved"](monkeypatch)
    assert audit_many_runs(sigma, DELTA, runs=2000).epsilon_lower_gaussian > sound.claimed_epsilon


@pytest.mark.parametrize("noise", ["seeded", "secure"])
def test_audit_of_a_sound_subsampled_run_raises_no_alarm(noise):
    found = audit_one_run(1.0, DELTA, steps=5, sample_rate=0.2, clients=50, noise=noise)
    assert found.holds
    assert found.epsilon_lower_gaussian is None
    assert found.claimed_epsilon == pytest.approx(epsilon(1.0, 0.2, 5, DELTA))


# ---- mutants ---------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(
    "mutant,terms",
    [
        ("clipping removed", dict(noise_multiplier=1.69, steps=1, sample_rate=1.0)),
        ("head without noise", dict(noise_multiplier=1.69, steps=1, sample_rate=1.0)),
        ("accounting reset each round", dict(noise_multiplier=3.0, steps=8, sample_rate=1.0, noise="secure")),
        ("poisson replaced by a fixed batch", dict(noise_multiplier=2.0, steps=16, sample_rate=0.1)),
        ("steps are not charged", dict(noise_multiplier=4.0, steps=4, sample_rate=1.0, noise="secure")),
    ],
)
def test_audit_catches_every_broken_mechanism(mutant, terms, monkeypatch):
    sound = audit_one_run(delta=DELTA, clients=50, **terms)
    assert sound.holds
    MUTANTS[mutant](monkeypatch)
    broken = audit_one_run(delta=DELTA, clients=50, **terms)
    assert broken.epsilon_lower > broken.claimed_epsilon


def test_seeded_accounting_reset_each_round_is_stopped_at_the_second_round(monkeypatch):
    MUTANTS["accounting reset each round"](monkeypatch)
    with pytest.raises(ValueError, match="seeded noise of a step would be used twice"):
        audit_one_run(4.0, DELTA, steps=2, clients=2)
