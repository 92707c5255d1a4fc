"""ε: agreement of three accountants, composition, calibration, and a ledger that cannot be talked out of its count."""

import json
import math

import numpy as np
import pytest
from scipy.stats import norm

from ffalora.privacy.accountants import (
    ACCOUNTANTS,
    Spent,
    accountant_of,
    affordable_steps,
    epsilon,
    epsilon_of,
    noise_multiplier_for,
)
from ffalora.privacy.accounting import LedgerMismatch, PrivacyBudgetSpent, PrivacyLedger
from ffalora.privacy.batch import sensible_batch
from ffalora.privacy.ledger_files import load_ledger
from ffalora.privacy.protocols import PROTOCOLS, epsilon_table, format_table

GRID = [
    (sigma, rate, steps)
    for sigma, rate, steps in [
        (0.6, 0.002, 2000),
        (0.8, 0.02, 100),
        (1.0, 0.0237, 75),
        (1.0, 0.1, 300),
        (1.5, 0.01, 3000),
        (2.0, 0.05, 500),
        (4.0, 0.3, 50),
        (8.0, 1.0, 20),
    ]
]
DELTA = 1e-5
#: PRV adds its own error bound of 0.01 to ε; PLD's rounding is far smaller.
PRV_PLD_GAP = 0.012
#: RDP is an upper bound: never below the others, and on this grid (ε from 0.5 to 20) at most 45% above PLD.
RDP_EXCESS = 1.45


def ledger(**changes) -> PrivacyLedger:
    terms = {
        "client_id": 7,
        "dataset_size": 2700,
        "sample_rate": 64 / 2700,
        "noise_multiplier": 1.0,
        "delta": DELTA,
        "max_steps": 75,
        "fingerprint": "movies",
    }
    return PrivacyLedger(**{**terms, **changes})


def opacus_epsilon(name: str, history: list[tuple[float, float, int]]) -> float:
    from opacus.accountants import create_accountant

    theirs = create_accountant(mechanism=name)
    for sigma, rate, steps, *_ in history:
        for _ in range(steps):
            theirs.step(noise_multiplier=sigma, sample_rate=rate)
    return theirs.get_epsilon(DELTA)


def exact_gaussian_epsilon(mu: float, delta: float) -> float:
    """ε of a Gaussian mechanism with sensitivity/σ = mu, exactly (Balle & Wang, ICML 2018, theorem 8)."""
    low, high = 0.0, 500.0
    for _ in range(200):
        eps = (low + high) / 2
        spent = norm.cdf(mu / 2 - eps / mu) - math.exp(eps + norm.logcdf(-mu / 2 - eps / mu))
        low, high = (eps, high) if spent > delta else (low, eps)
    return high


@pytest.mark.parametrize(("sigma", "rate", "steps"), GRID)
def test_three_accountants_agree_within_their_stated_gaps(sigma, rate, steps):
    rdp, prv, pld = (epsilon(sigma, rate, steps, DELTA, accountant) for accountant in ACCOUNTANTS)
    assert abs(prv - pld) <= PRV_PLD_GAP
    assert pld <= rdp <= RDP_EXCESS * pld


@pytest.mark.long
@pytest.mark.parametrize(("sigma", "rate", "steps"), GRID[:4])
def test_epsilon_is_that_of_the_libraries_own_accountants(sigma, rate, steps):
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    for name in ("rdp", "prv"):
        theirs = opacus_epsilon(name, [(sigma, rate, steps)])
        assert epsilon(sigma, rate, steps, DELTA, name) == pytest.approx(theirs, rel=1e-9)
    # Ours uses a coarser grid of losses where steps are few: never below theirs by more than rounding, at most 1e-3
    # above.
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma))
    theirs = PLDAccountant().compose(event, steps)
    assert -1e-9 <= epsilon(sigma, rate, steps, DELTA, "pld") - theirs.get_epsilon(DELTA) <= 1e-3


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
@pytest.mark.parametrize("sampling", ["shuffled", "full", "without-replacement"])
def test_loader_that_is_not_poisson_gets_no_amplification_and_a_sensitivity_of_two_c(accountant, sampling):
    sigma, steps = 12.0, 30
    exact = exact_gaussian_epsilon(2 * math.sqrt(steps) / sigma, DELTA)
    ours = epsilon(sigma, 0.01, steps, DELTA, accountant, sampling)
    assert exact - 1e-6 <= ours <= exact * (1.2 if accountant == "rdp" else 1.0) + PRV_PLD_GAP
    assert ours > 10 * epsilon(sigma, 0.01, steps, DELTA, "pld")


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_full_poisson_batches_are_the_exact_gaussian_mechanism(accountant):
    exact = exact_gaussian_epsilon(math.sqrt(50) / 9.0, DELTA)
    ours = epsilon(9.0, 1.0, 50, DELTA, accountant)
    assert exact - 1e-6 <= ours <= exact * (1.2 if accountant == "rdp" else 1.0) + PRV_PLD_GAP


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
@pytest.mark.parametrize(("sigma", "steps", "delta"), [(20.0, 1000, 1e-12), (100.0, 30_000, 1e-14), (10.0, 600, 1e-9)])
def test_a_delta_that_round_off_may_hide_is_still_bounded_from_above(accountant, sigma, steps, delta):
    exact = exact_gaussian_epsilon(math.sqrt(steps) / sigma, delta)
    assert exact <= epsilon(sigma, 1.0, steps, delta, accountant) <= 1.1 * exact
    assert accountant_of([Spent(sigma, 1.0, steps)], accountant, delta) == "rdp"


@pytest.mark.long
@pytest.mark.parametrize(("target", "delta", "steps"), [(0.1, DELTA, 75), (0.02, DELTA, 10), (0.15, 1e-9, 30)])
def test_a_small_epsilon_can_be_asked_for_by_renyi_moments_alone(target, delta, steps):
    """Of those that Opacus looks at the largest order is 63, where δ alone costs 0.10 at 1e-5 and 0.25 at 1e-9."""
    sigma = noise_multiplier_for(target, delta, 1.0, steps, "rdp")
    exact = exact_gaussian_epsilon(math.sqrt(steps) / sigma, delta)
    assert exact <= epsilon(sigma, 1.0, steps, delta, "rdp") <= target <= 2 * exact
    assert sensible_batch(2700, target, delta, steps) <= 2700


def test_a_target_that_no_noise_meets_is_refused_with_a_remedy_that_is_one():
    with pytest.raises(ValueError, match=r"accountant='prv'.*take accountant='pld'"):
        noise_multiplier_for(0.005, DELTA, 0.1, 10, "prv")
    with pytest.raises(ValueError, match=r"accountant='rdp'.*take a larger delta"):
        noise_multiplier_for(0.005, 1e-9, 0.1, 10, "pld")


def test_the_smallest_delta_of_numerical_accountants_is_bounded_from_above():
    exact = exact_gaussian_epsilon(math.sqrt(1000) / 20, 1e-8)
    assert exact <= epsilon(20.0, 1.0, 1000, 1e-8, "pld") <= 1.001 * exact
    assert accountant_of([Spent(20.0, 1.0, 1000)], "pld", 1e-8) == "pld"


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_composition_over_rounds_is_that_of_one_run(accountant):
    whole = epsilon(1.0, 0.02, 100, DELTA, accountant)
    rounds = epsilon_of([Spent(1.0, 0.02, 10)] * 10, DELTA, accountant)
    assert rounds == whole
    book = ledger(sample_rate=0.02, max_steps=100, accountant=accountant)
    for _ in range(10):
        book.charge(10)
    assert book.epsilon() == whole


def test_epsilon_of_rounds_composes_instead_of_starting_anew():
    """Calibrating ε=6 for the ten steps of each round of the paper's SST-2 protocol really spends eleven times as
    much.
    """
    protocol = PROTOCOLS["ffa-lora/sst2"]
    sigma = noise_multiplier_for(6.0, 1e-5, protocol.sample_rate, 10, "prv")
    assert epsilon(sigma, protocol.sample_rate, protocol.steps, 1e-5, "pld") == pytest.approx(66, abs=2)


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_mixed_history_costs_more_than_each_part_and_less_than_their_sum(accountant):
    first, second = Spent(1.0, 0.02, 60), Spent(1.4, 0.05, 40)
    both = epsilon_of([first, second], DELTA, accountant)
    parts = [epsilon_of([part], DELTA / 2, accountant) for part in (first, second)]
    if accountant != "pld":
        assert both == pytest.approx(opacus_epsilon(accountant, [first, second]), rel=1e-6)
    assert max(epsilon_of([part], DELTA, accountant) for part in (first, second)) < both < sum(parts)
    assert epsilon_of([second, first, Spent(1.0, 0.02, 0)], DELTA, accountant) == both


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
@pytest.mark.parametrize(
    ("target", "rate", "steps"), [(6.0, 0.0237, 75), (0.5, 0.01, 500), (3.0, 1.0, 10), (20.0, 0.1, 1)]
)
def test_calibrated_noise_spends_the_target_and_no_more(accountant, target, rate, steps):
    sigma = noise_multiplier_for(target, DELTA, rate, steps, accountant)
    assert target * (1 - 1e-3) <= epsilon(sigma, rate, steps, DELTA, accountant) <= target


def test_one_sigma_spends_more_on_a_smaller_client():
    sigma = noise_multiplier_for(6.0, 1e-5, 64 / 2700, 75, "rdp")
    small = epsilon(sigma, 64 / 500, 75, 1e-5, "rdp")
    assert small > 2.5 * 6.0


#: The published figures have two decimals and come from another root finder: 0.012 covers both.
@pytest.mark.parametrize(
    ("task", "sigmas"),
    [
        ("mnli", (0.55, 0.67, 1.00)),
        ("qqp", (0.56, 0.68, 1.03)),
        ("qnli", (0.79, 1.10, 2.44)),
        ("sst2", (1.00, 1.52, 3.69)),
    ],
)
def test_noise_of_the_published_protocols_is_reproduced(task, sigmas):
    protocol = PROTOCOLS[f"ffa-lora/{task}"]
    ours = [
        noise_multiplier_for(e, protocol.delta, protocol.sample_rate, protocol.steps, "rdp") for e in (6.0, 3.0, 1.0)
    ]
    np.testing.assert_allclose(ours, sigmas, atol=0.012, rtol=0)


@pytest.mark.long
def test_a_client_of_all_of_fedsvds_rounds_spends_more_than_its_released_code_says():
    """σ for the 500 steps of an expected participation spends 6 in these, and 7.77 in the 1,000 of every round."""
    known = PROTOCOLS["fedsvd"]
    assert (round(1 / known.sample_rate), known.calibrated_steps, known.steps) == (88, 500, 1000)
    sizes = (known.dataset_size, known.batch_size)
    rows = {
        r.accountant: r
        for r in epsilon_table(*sizes, known.steps, known.delta, target_epsilon=6.0, calibrated_steps=500)
    }
    assert rows["prv"].epsilon == pytest.approx(7.77, abs=0.005) and rows["pld"].epsilon == pytest.approx(
        7.77, abs=0.01
    )
    for row in rows.values():
        (expected,) = [
            r
            for r in epsilon_table(*sizes, 500, known.delta, noise_multiplier=row.noise_multiplier)
            if r.accountant == row.accountant
        ]
        assert 5.98 < expected.epsilon <= 6.0 and row.steps == 1000
    assert "as many as a client takes on average" in known.describe()


def test_epsilon_table_holds_every_accountant_within_the_target():
    rows = epsilon_table(2700, 64, 75, 1e-5, target_epsilon=6.0)
    assert [r.accountant for r in rows] == list(ACCOUNTANTS)
    assert all(5.99 <= r.epsilon <= 6.0 for r in rows)
    assert all(name in format_table(rows) for name in ACCOUNTANTS)
    for row, line in zip(rows, format_table(rows).splitlines()[1:], strict=True):
        sigma, shown = map(float, line.split()[1:3])
        assert row.noise_multiplier <= sigma and row.epsilon <= shown
    with pytest.raises(ValueError, match="either noise_multiplier or target_epsilon"):
        epsilon_table(2700, 64, 75, 1e-5)
    with pytest.raises(ValueError, match="batch_size"):
        epsilon_table(50, 64, 75, 1e-5, noise_multiplier=1.0)


def test_zero_noise_costs_infinity_and_zero_steps_cost_nothing():
    assert epsilon(0.0, 0.1, 5, DELTA) == math.inf
    assert epsilon(1.0, 0.1, 0, DELTA) == 0.0
    for accountant in ACCOUNTANTS:  # absurdly little noise: a number, not a crash
        assert epsilon(0.05, 0.5, 10_000, DELTA, accountant) > 300


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
        ({"noise_multiplier": math.nan}, "noise_multiplier"),
        ({"sample_rate": 1.5}, "sample_rate"),
        ({"steps": -1}, "steps"),
        ({"accountant": "gdp"}, "accountant"),
        ({"sampling": "sorted"}, "sampling"),
    ],
)
def test_bad_value_is_named(change, named):
    with pytest.raises(ValueError, match=named):
        epsilon(**{"noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 10, "delta": DELTA, **change})


def test_unreachable_target_is_refused_with_its_remedy():
    with pytest.raises(ValueError, match="accountant='pld'"):
        noise_multiplier_for(0.005, DELTA, 0.1, 10, "prv")
    with pytest.raises(ValueError, match="target_epsilon"):
        noise_multiplier_for(0.0, DELTA, 0.1, 10)


def test_ledger_refuses_steps_beyond_its_maximum():
    book = ledger()
    book.charge(74)
    with pytest.raises(PrivacyBudgetSpent, match=r"client 7 has taken 74 steps.*max_steps=75"):
        book.charge(2)
    book.charge()
    with pytest.raises(PrivacyBudgetSpent, match="client 7"):
        book.charge()
    assert book.steps_taken == 75


def test_ledger_refuses_steps_beyond_its_target():
    sigma = noise_multiplier_for(2.0, DELTA, 0.02, 50, "rdp")
    book = ledger(sample_rate=0.02, noise_multiplier=sigma, max_steps=500, target_epsilon=2.0, accountant="rdp")
    assert 50 <= book.steps_allowed < 55
    book.charge(book.steps_left)
    assert book.epsilon() <= 2.0 < epsilon(sigma, 0.02, book.steps_taken + 1, DELTA, "rdp")
    with pytest.raises(PrivacyBudgetSpent, match=r"client 7.*target_epsilon=2"):
        book.charge()


def test_earlier_runs_on_the_same_data_are_counted():
    fresh = ledger(accountant="rdp", target_epsilon=3.0, noise_multiplier=1.0)
    spent = ledger(accountant="rdp", target_epsilon=3.0, noise_multiplier=1.0, prior=(Spent(1.0, 64 / 2700, 75),))
    assert spent.epsilon() == fresh.final_epsilon() > 0
    assert spent.final_epsilon() > fresh.final_epsilon()
    exhausted = ledger(accountant="rdp", target_epsilon=1.0, prior=(Spent(0.7, 0.1, 75),))
    with pytest.raises(PrivacyBudgetSpent, match="target_epsilon=1"):
        exhausted.charge()


def test_zero_noise_with_a_target_is_refused():
    with pytest.raises(ValueError, match=r"client 7: noise_multiplier=0 .* target_epsilon=6"):
        ledger(noise_multiplier=0.0, target_epsilon=6.0)


def test_ledger_comes_through_json_whole(tmp_path):
    book = ledger(prior=(Spent(1.1, 0.5, 3),), target_epsilon=60.0, accountant="rdp", max_steps=np.int64(75))
    book.charge(10)
    again = PrivacyLedger.from_state_dict(json.loads(json.dumps(book.state_dict())))
    assert again == book
    book.save(tmp_path / "ledger.json")
    assert load_ledger(tmp_path / "ledger.json") == book
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.json"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dataset_size": 2701}, "dataset_size was 2700 and is 2701"),
        ({"sample_rate": 0.5}, "sample_rate was .* and is 0.5"),
        ({"noise_multiplier": 0.5}, "noise_multiplier was 1.0 and is 0.5"),
        ({"delta": 1e-6}, "delta was 1e-05 and is 1e-06"),
        ({"fingerprint": "tweets"}, "fingerprint was 'movies' and is 'tweets'"),
        ({"client_id": 8}, "client_id was 7 and is 8"),
        ({"sampling": "shuffled"}, "sampling was 'poisson'"),
        ({"max_steps": 5}, "max_steps was 75 and is 5"),
        ({"max_steps": 750}, "max_steps was 75 and is 750"),
    ],
)
def test_resume_refuses_a_changed_term(change, named):
    book = ledger()
    book.charge(10)
    with pytest.raises(LedgerMismatch, match=named):
        ledger(**change).resume(book.state_dict())


def test_resume_keeps_the_higher_count():
    book, again = ledger(), ledger()
    book.charge(10)
    again.resume(book.state_dict())
    assert again.steps_taken == 10
    again.charge(5)
    again.resume(book.state_dict())
    assert again.steps_taken == 15


@pytest.mark.parametrize(
    "tamper",
    [
        {"steps_taken": -1},
        {"steps_taken": 76},
        {"steps_taken": 1.5},
        {"max_steps": 10**400},
        {"noise_multiplier": "1"},
        {"noise_multiplier": math.inf},
        {"prior": [[1.0, 0.5]]},
        {"prior": [[1.0, 0.5, 3, "lucky", "sample", "zero-out"]]},
        {"prior": [[1.0, 0.5, 3, "poisson", "client", "zero-out"]]},
        {"size_is_public": 1},
        {"sampling": "lucky"},
        {"surprise": 1},
        {"format": 0},
        {"delta": None},
    ],
)
def test_tampered_ledger_is_refused(tamper):
    with pytest.raises(LedgerMismatch):
        PrivacyLedger.from_state_dict({**ledger().state_dict(), **tamper})


def test_affordable_steps_are_the_most_the_target_allows():
    steps = affordable_steps(2.0, DELTA, Spent(1.0, 0.02, 10_000), "rdp")
    assert epsilon(1.0, 0.02, steps, DELTA, "rdp") <= 2.0 < epsilon(1.0, 0.02, steps + 1, DELTA, "rdp")
    assert affordable_steps(0.001, DELTA, Spent(1.0, 0.5, 10), "rdp") == 0
