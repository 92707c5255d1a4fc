"""Factors of correlated noise: what they save, what they cost, and noise that is what they say."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.linalg import toeplitz

from ffalora.privacy.accountants import epsilon_of, noise_multiplier_for
from ffalora.privacy.accounting import LedgerMismatch, PrivacyBudgetSpent, PrivacyLedger
from ffalora.privacy.correlated_noise import CorrelatedNoise
from ffalora.privacy.correlation import Correlation, records_of_turn
from ffalora.privacy.data_ledger import DataLedger
from ffalora.privacy.factors import banded_factor, blt_factor, choose_noise
from ffalora.privacy.ledger_files import charge_file
from ffalora.privacy.statement import PrivacyStatement

FACTORS = {
    "banded-mf": banded_factor(steps=40, band=6),
    "blt": blt_factor(steps=40, separation=9),
    "band of 1": banded_factor(steps=40, band=1),
}


def matrix(correlation: Correlation, steps: int | None = None) -> np.ndarray:
    """C, written out."""
    steps = steps or correlation.steps
    return np.tril(toeplitz(correlation.coefficients()[:steps]))


def shaped(correlation: Correlation, normals: torch.Tensor) -> torch.Tensor:
    """The noise of every step, ``[T,P]``, of normals of that shape."""
    noise, rows = CorrelatedNoise.begin(correlation, normals.shape[1]), normals.clone()
    for row in rows:
        noise.shape_(row)
    return rows


@pytest.mark.parametrize("name", FACTORS)
def test_noise_step_by_step_is_the_inverse_of_the_factor_times_normals(name):
    correlation, normals = FACTORS[name], torch.randn(40, 7, dtype=torch.float64)
    expected = np.linalg.solve(matrix(correlation), normals.numpy())
    np.testing.assert_allclose(shaped(correlation, normals).numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", FACTORS)
def test_measured_error_of_prefix_sums_is_within_a_hundredth_of_the_formula(name):
    correlation = FACTORS[name]
    normals = torch.randn(40, 20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sums = shaped(correlation, correlation.sensitivity * normals).cumsum(0)
    assert float(sums.square().mean().sqrt()) == pytest.approx(correlation.prefix_error(), rel=0.01)


@pytest.mark.parametrize("name", FACTORS)
def test_sensitivity_is_that_of_the_group_and_the_gradients_which_change_a_release_most(name):
    correlation, rng = FACTORS[name], np.random.default_rng(0)
    c, turns = matrix(correlation), correlation.separation
    columns = [c[:, first::turns] for first in range(turns)]
    if correlation.period < correlation.steps:  # a release is what one record takes part in once
        columns = [each[:, k : k + 1] for each in columns for k in range(each.shape[1])]
    alike = max(np.linalg.norm(each.sum(1)) for each in columns)
    assert correlation.sensitivity == pytest.approx(alike, rel=1e-12)
    for each in columns:
        directions = rng.standard_normal((each.shape[1], 5))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        assert np.linalg.norm(each @ directions) <= correlation.sensitivity * (1 + 1e-12)


def test_columns_in_which_a_record_takes_part_do_not_overlap_under_a_banded_factor():
    c = matrix(banded_factor(steps=23, band=4, separation=5))
    for first in range(5):
        gram = c[:, first::5].T @ c[:, first::5]
        assert not np.triu(gram, 1).any() and gram.max() <= (c[:, 0] @ c[:, 0]) * (1 + 1e-12)


@pytest.mark.long
@pytest.mark.parametrize(("epsilon", "ratio"), [(1.0, 0.93), (3.0, 0.80), (8.0, 0.66)])
def test_prefix_sums_of_the_studies_setting_are_less_noisy_at_the_same_epsilon(epsilon, ratio):
    found, sigma = choose_noise("banded-mf", 40, 64 / 2331, 1e-5, epsilon, None)
    alone = noise_multiplier_for(epsilon, 1e-5, 64 / 2331, 40)
    assert sigma * found.prefix_error() <= ratio * alone * math.sqrt(41 / 2)


def test_searched_coefficients_are_no_worse_than_the_square_root():
    root = Correlation("banded-mf", 100, 8, tuple(np.cumprod(1 - 0.5 / np.arange(1, 8))))
    assert banded_factor(100, 8).prefix_error() < root.prefix_error()
    long_band = Correlation("banded-mf", 100, 100, tuple(np.cumprod(1 - 0.5 / np.arange(1, 100))))
    assert blt_factor(100, 100).prefix_error() < 1.005 * long_band.prefix_error()


def test_the_same_factor_is_found_again():
    assert blt_factor(40, 9) == FACTORS["blt"] and banded_factor(40, 6) == FACTORS["banded-mf"]


# ---- ε against an accountant that knows nothing but the matrix and who takes part when


def monte_carlo_delta(
    columns: np.ndarray, rate: float, deviation: float, epsilon: float, rng: np.random.Generator, draws: int = 20_000
) -> tuple[float, float]:
    """δ at ``epsilon`` in both directions, and the larger standard error, for a record that each step of ``columns
    [T,K]`` takes with probability ``rate``: its gradient is 1 wherever it takes part.
    """
    taken = np.array(list(product((0.0, 1.0), repeat=columns.shape[1])))
    chance = rate ** taken.sum(1) * (1 - rate) ** (1 - taken).sum(1)
    taken, chance = taken[chance > 0], chance[chance > 0]
    means = taken @ columns.T
    found = []
    for sign in (1, -1):
        x = deviation * rng.standard_normal((draws, len(columns)))
        if sign == 1:
            x += means[rng.choice(len(means), draws, p=chance / chance.sum())]
        losses = np.log(chance) + (x @ means.T - (means**2).sum(1) / 2) / deviation**2
        loss = sign * np.logaddexp.reduce(losses, axis=1)
        lost = np.maximum(0.0, -np.expm1(np.minimum(0.0, epsilon - loss)))
        found.append((lost.mean(), lost.std() / math.sqrt(draws)))
    return max(found)


def random_ledger(rng: np.random.Generator) -> PrivacyLedger:
    steps, records = int(rng.integers(2, 13)), 10_000
    sigma = float(rng.uniform(0.6, 3.0))
    if rng.random() < 0.5:
        separation = int(rng.integers(1, min(steps, 5) + 1))
        while steps / separation > 5:  # patterns are counted one by one
            separation += 1
        correlation = banded_factor(steps, int(rng.integers(1, separation + 1)), separation)
        rate = float(rng.choice([rng.uniform(0.05, 1.0), 1.0])) / separation
    else:
        correlation = blt_factor(steps, int(rng.integers(1, steps + 3)))
        rate = 1.0 / correlation.separation
    return PrivacyLedger(0, records, rate, sigma, 1e-5, steps, correlation=correlation)


@pytest.mark.long
def test_epsilon_is_never_below_a_monte_carlo_accountant_in_fifty_random_configurations():
    rng, delta, tight = np.random.default_rng(5), 0.02, []
    for _ in range(50):
        ledger = random_ledger(rng)
        correlation = ledger.correlation
        done = int(rng.integers(1, ledger.max_steps + 1))
        stated = epsilon_of([ledger.steps(done)], delta)
        first = int(rng.integers(0, min(correlation.separation, done)))
        columns = matrix(correlation, done)[:, first :: correlation.separation]
        rate = ledger.sample_rate * correlation.separation
        deviation = ledger.noise_multiplier * correlation.sensitivity
        found, error = monte_carlo_delta(columns, rate, deviation, stated, rng)
        assert found <= delta + 4 * error, f"{ledger.correlation}, q={ledger.sample_rate}, {done} steps"
        tight.append(found > 0.8 * delta)
    assert sum(tight) >= 10, "the accountant has no power: no configuration is near its bound"


# ---- who takes part when


def test_every_record_takes_one_turn_in_each_cycle():
    seen = [records_of_turn(3, 1, step, 23, 4) for step in range(9)]
    assert sorted(np.concatenate(seen[:4]).tolist()) == list(range(23))
    assert all((a == b).all() for a, b in zip(seen, seen[4:], strict=False))
    assert {len(each) for each in seen} <= {5, 6}
    assert not np.array_equal(seen[0], records_of_turn(3, 2, 0, 23, 4))


# ---- what is refused


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("tree", 5, 5, (0.5,)), "mechanism must be one of"),
        (("banded-mf", 0, 5, (0.5,)), "steps must be a whole number"),
        (("banded-mf", 3, 5, (0.5, 0.3, 0.2)), "band of 4 steps is longer than the run, which has 3"),
        (("banded-mf", 9, 3, (0.5, 0.3, 0.2)), "longer than separation=3"),
        (("banded-mf", 9, 3, (-0.5,)), "weights must be finite and not negative"),
        (("banded-mf", 9, 3, (0.5,), (0.5,)), "decays=.* are for mechanism='blt'"),
        (("blt", 9, 3, (0.5,), (1.0,)), "decays must lie in"),
        (("blt", 9, 3, (0.5, 0.1), (0.5,)), "one for each of 2 weights"),
        (("blt", 9, 3, (0.7, 0.4), (0.5, 0.9)), "weights must sum to less than 1"),
    ],
)
def test_what_is_no_factor_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        Correlation(*values)


def test_a_band_that_does_not_fit_the_run_or_the_data_is_refused():
    for band in (0, 7, 50):
        with pytest.raises(ValueError, match=f"band={band} must lie in 1 … 6"):
            choose_noise("banded-mf", 6, 0.1, 1e-5, 2.0, None, band=band)
    with pytest.raises(ValueError, match="band=5 must lie in 1 … 4"):
        choose_noise("banded-mf", 6, 0.25, 1e-5, 2.0, None, band=5)
    with pytest.raises(ValueError, match="does not say which band is best"):
        choose_noise("banded-mf", 6, 0.1, 1e-5, None, 1.0)
    with pytest.raises(ValueError, match="at least 1"):
        blt_factor(5, 0)


def test_buffers_of_another_shape_or_type_are_refused():
    for buffers in (torch.zeros(4, 3).double(), torch.zeros(5, 3), torch.zeros(5).double()):
        with pytest.raises(ValueError, match=r"buffers must be float64 \[5,P\]"):
            CorrelatedNoise(FACTORS["banded-mf"], buffers)


# ---- ledgers


def ledger(mechanism: str = "banded-mf", **changes) -> PrivacyLedger:
    correlation = banded_factor(10, 4) if mechanism == "banded-mf" else blt_factor(10, 4)
    terms = dict(client_id=0, dataset_size=100, noise_multiplier=2.0, delta=1e-3, max_steps=10, correlation=correlation)
    return PrivacyLedger(**terms | {"sample_rate": 0.1 if mechanism == "banded-mf" else 0.25} | changes)


def test_steps_count_as_the_releases_that_they_begin():
    banded, blt = ledger(), ledger("blt")
    assert [banded.steps(t).steps for t in (0, 1, 4, 5, 8, 9, 10)] == [0, 1, 1, 2, 2, 3, 3]
    assert banded.steps(3)[:2] == (2.0, pytest.approx(0.4))
    assert [blt.steps(t).steps for t in (0, 1, 10)] == [0, 1, 1] and blt.steps(1)[:2] == (2.0, 1.0)


def test_more_steps_than_were_planned_are_refused():
    for spent in (ledger(), ledger("blt")):
        spent.charge(10)
        with pytest.raises(PrivacyBudgetSpent, match="max_steps=10 were calibrated for"):
            spent.charge()


def test_a_target_affords_whole_releases():
    target = epsilon_of([ledger().steps(8)], 1e-3) * 1.0001
    assert ledger(target_epsilon=target).steps_allowed == 8
    assert ledger("blt", target_epsilon=0.1).steps_allowed == 0
    enough = epsilon_of([ledger("blt").steps(1)], 1e-3) * 1.0001
    assert ledger("blt", target_epsilon=enough).steps_allowed == 10


def test_noise_that_begins_anew_is_charged_as_another_release():
    spent = ledger()
    spent.charge(5)
    spent.begin_anew()
    spent.begin_anew()
    assert spent.steps_taken == 8 and spent.steps_left == 2
    spent.charge()
    assert spent.history[-1].steps == 3
    whole = ledger("blt")
    whole.charge(2)
    whole.begin_anew()
    assert whole.steps_left == 0
    short = ledger()
    short.charge(5)
    short.allowance = 6  # and if it rises later, the release that was begun is charged whole
    short.begin_anew()
    assert short.steps_taken == 8
    alone = ledger(correlation=None)
    alone.charge(5)
    alone.begin_anew()
    assert alone.steps_taken == 5


def test_a_ledger_is_read_as_it_was_written_and_refuses_another_factor():
    stored = ledger()
    stored.charge(3)
    again = PrivacyLedger.from_state_dict(stored.state_dict())
    assert again == stored
    for other in (banded_factor(10, 3, separation=4), banded_factor(10, 4, separation=5)):
        with pytest.raises(LedgerMismatch, match="correlation was Correlation"):
            ledger(correlation=other).resume(stored.state_dict())
    assert "correlation" not in ledger(correlation=None).state_dict()
    for damaged in ({"mechanism": "blt"}, "blt", {**stored.correlation.as_dict(), "weights": [3]}):
        with pytest.raises(LedgerMismatch):
            PrivacyLedger.from_state_dict(stored.state_dict() | {"correlation": damaged, "sample_rate": 0.9})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_steps": 12}, "correlated over 10 steps, but max_steps=12"),
        ({"sample_rate": 0.3}, "more than one of 4 groups"),
        ({"sampling": "shuffled"}, "mechanism='banded-mf' is for unit='sample'"),
        ({"unit": "client"}, "mechanism='banded-mf' is for unit='sample'"),
        ({"size_is_public": False}, "number of records that is public"),
    ],
)
def test_a_ledger_for_which_correlated_noise_is_not_derived_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        ledger(**changes)


def test_two_processes_on_one_file_are_refused_where_noise_is_correlated(tmp_path):
    first, second = ledger(), ledger()
    first.charge()
    charge_file(first, tmp_path / "0.json")
    second.charge()
    with pytest.raises(LedgerMismatch, match="another one trains on it"):
        charge_file(second, tmp_path / "0.json")
    first.charge(4)
    charge_file(first, tmp_path / "0.json")
    assert first.steps_taken == 5


def test_the_ledger_of_a_data_set_counts_releases(tmp_path):
    records = {"0": lambda: [bytes([i]) * 8 for i in range(100)]}
    data_ledger, own = DataLedger(tmp_path), ledger()
    with data_ledger.opened():
        data_ledger.enter("token", "run", {"0": own}, records, True)
        for steps in (3, 2, 4):
            own.charge(steps)
            data_ledger.charge({"0": own})
            assert data_ledger.steps_of("0") == own.steps(own.steps_taken).steps
    other = DataLedger(tmp_path)
    with other.opened():
        other.enter("another", "run", {"0": ledger()}, records, True)
        fresh = ledger()
        other.look_up({"0": fresh})
    assert fresh.others == (own.steps(9),)
    assert other.total(fresh, 0) == pytest.approx(own.epsilon())


def test_the_statement_says_how_noise_is_correlated_and_records_take_turns():
    said = PrivacyStatement.from_ledgers([ledger()], "secure", 1.0)
    assert said.mechanism.startswith("banded matrix factorisation") and said.sampling.startswith("cyclic Poisson")
    assert any("begins another" in caveat for caveat in said.caveats)
    assert "no amplification" in PrivacyStatement.from_ledgers([ledger("blt")], "secure", 1.0).sampling
