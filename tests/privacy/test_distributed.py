"""Noise in shares: what a sum of them is, what it spends, how far one client moves it, and what is refused."""

import math
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.signal import fftconvolve
from scipy.special import ive

from ffalora.privacy.accountants import epsilon, noise_multiplier_for
from ffalora.privacy.accounting import PrivacyLedger
from ffalora.privacy.client_level import SERVER_ID, ClientLevel
from ffalora.privacy.distributed import NoiseShares
from ffalora.privacy.noise import SecureNoise, SeededNoise
from ffalora.privacy.sampling import SeededDraw
from ffalora.privacy.skellam import noise_multiplier_of, skellam, variance_for

TERMS = NoiseShares(
    noise_multiplier=1.2, max_update_norm=0.5, width=200, clients=5, dropouts=1, colluders=1, bits=14, seed=3
)
WORDS = np.frombuffer(random.Random(0).randbytes(16 * 100_000), dtype=np.uint64).reshape(-1, 2)


def updates(count, terms=TERMS, length=1.0):
    drawn = np.random.default_rng(1).standard_normal((count, terms.width))
    return length * terms.max_update_norm * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def population(*terms, **changes):
    return PrivacyLedger(SERVER_ID, *terms, accountant="rdp", unit="client", **changes)


def level(terms=TERMS, rounds=10, noise=None, **changes):
    ledger = population(terms.clients, 1.0, terms.noise_multiplier, 1e-3, rounds, sampling="by-server")
    given = {"ledger": ledger, "max_update_norm": terms.max_update_norm, "shares": terms} | changes
    return ClientLevel(noise=noise or SeededNoise(5), draw=SeededDraw(3), **given)


@pytest.mark.parametrize("variance", [1, 37, 100_000])
def test_draws_have_the_probabilities_of_skellam(variance):
    """Against Bessel functions, to what 100,000 draws can tell: Kolmogorov and Smirnov's distance at 1e-6."""
    drawn = skellam(WORDS, variance)
    values = np.arange(drawn.min(), drawn.max() + 1)
    expected = (
        np.cumsum(ive(np.abs(values), float(variance))) + ive(np.abs(np.arange(-9000, values[0])), variance).sum()
    )
    seen = np.cumsum(np.bincount(drawn - values[0])) / len(drawn)
    assert np.abs(seen - expected).max() < math.sqrt(math.log(2 / 1e-6) / (2 * len(drawn)))


def test_words_that_tie_with_a_threshold_are_told_apart_by_their_second_half():
    tied = np.array([[0, 0], [0, 2**63], [2**64 - 1, 2**64 - 1]], dtype=np.uint64)
    low, next_one, high = skellam(tied, 4).tolist()
    assert low < next_one < -20 and high > 30  # events of 2⁻¹²⁸, 2⁻⁶⁵ and 2⁻¹²⁸


def loss_epsilon(change: list[int], variance: float, rounds: int, delta: float) -> float:
    """ε of an integer vector's change under Skellam noise, from its probabilities alone; never above the truth.

    Losses of each coordinate are rounded down to a grid and convolved, over coordinates and rounds.
    """
    grid, total, start = 1e-3, np.ones(1), 0
    for value, times in Counter(map(abs, change)).items():
        reach = int(16 * math.sqrt(variance)) + value + 60
        k = np.arange(-reach, reach + 1)
        p, q = ive(np.abs(k), variance), ive(np.abs(k - value), variance)
        known = (p > 0) & (q > 0)
        losses = np.floor(np.log(p[known] / q[known]) / grid).astype(int)
        one = np.bincount(losses - losses.min(), weights=p[known])
        for _ in range(times * rounds):
            total, start = fftconvolve(total, one), start + losses.min()
            keep = np.flatnonzero(total > 1e-14)
            total, start = np.clip(total[keep[0] : keep[-1] + 1], 0, None), start + keep[0]
    losses = (start + np.arange(len(total))) * grid
    tail, weighted = np.cumsum(total[::-1])[::-1], np.cumsum((total * np.exp(-losses))[::-1])[::-1]
    above = (tail > delta) & (weighted > 0)  # δ(ε) is at least what any set of losses gives: P - e^ε Q
    return float(np.log((tail[above] - delta) / weighted[above]).max(initial=0.0))


def test_epsilon_is_never_below_that_of_the_probabilities_in_fifty_random_configurations():
    rng = np.random.default_rng(7)
    for _ in range(50):
        width, rounds, most = int(rng.integers(1, 6)), int(rng.integers(1, 4)), int(rng.choice([1, 3, 10, 40]))
        change = [1, *rng.integers(-most, most + 1, width).tolist()]
        squared = sum(value * value for value in change)
        variance = rounds * squared * float(rng.uniform(0.3, 5))
        sigma, delta = noise_multiplier_of(variance, squared, len(change)), float(rng.choice([1e-5, 1e-3]))
        claimed = epsilon(sigma, 1.0, rounds, delta, "pld", "by-server")
        assert claimed >= loss_epsilon(change, variance, rounds, delta), (change, variance, rounds, delta)


def test_epsilon_of_fine_noise_is_nearly_that_of_gaussian_noise():
    sigma = noise_multiplier_of(1.44e6, 1e6, 30_000)
    assert sigma == pytest.approx(1.2, rel=1e-4) and sigma <= 1.2
    assert epsilon(sigma, 1.0, 3, 1e-5, "pld", "by-server") == pytest.approx(
        epsilon(1.2, 1.0, 3, 1e-5, "rdp"), rel=0.02
    )


def test_a_history_with_shares_is_counted_by_moments_whatever_the_accountant():
    given = 2.0, 1.0, 7, 1e-5
    found = {epsilon(*given, accountant, "by-server") for accountant in ("rdp", "prv", "pld")}
    assert len(found) == 1 and found.pop() >= epsilon(*given, "rdp")
    sigma = noise_multiplier_for(3.0, 1e-5, 0.1, 20, "pld", "by-server")
    assert 2.99 <= epsilon(sigma, 0.7, 20, 1e-5, "rdp", "by-server") <= 3.0  # the rate is not used


def test_least_variance_meets_its_noise_multiplier():
    for squared, width in ((1, 1), (40, 10), (10**6, 5000)):
        assert 1.3 <= noise_multiplier_of(variance_for(1.3, squared, width), squared, width) < 1.3 * (1 + 1e-9)


def test_the_sum_of_shares_is_the_sum_of_updates_with_the_stated_noise():
    rows, noise = updates(5), SecureNoise()
    sent = [TERMS.share(row, noise, client, 2) for client, row in enumerate(rows)]
    assert all(((0 <= one) & (one < 2**14)).all() and one.dtype == np.int64 for one in sent)
    error = TERMS.decoded(TERMS.sum_of(sent), 2) - rows.sum(0)
    expected = TERMS.noise_std * math.sqrt(5 / 3)  # three shares suffice, five came
    assert float(error.std()) == pytest.approx(expected, rel=5 / math.sqrt(2 * TERMS.width))
    central = TERMS.noise_multiplier * TERMS.max_update_norm
    assert central < TERMS.noise_std < 1.05 * central


@pytest.mark.parametrize("length", [1.0, 0.3, 0.0])
def test_what_one_client_moves_is_bounded_on_the_whole_numbers_themselves(length):
    """Without its noise a share is the rounded update; its length is what σ is about, roundings included."""
    coarse = replace(TERMS, bits=8)
    assert coarse.l2_squared > 1.3 * (coarse.max_update_norm / coarse.granularity) ** 2  # roundings matter here
    for step in range(40):
        turned = coarse._turned(updates(1, coarse, length)[0], step) / coarse.granularity
        rounded = coarse._rounded(turned, SeededNoise(step), 0, step)
        assert int(rounded @ rounded) <= coarse.l2_squared and np.abs(rounded - turned).max() < 1
    norm = coarse.max_update_norm / coarse.granularity
    halves = np.full(coarse.length, 0.5)  # these overshoot at times, were they let
    halves[0] = math.floor(math.sqrt(norm**2 - (coarse.length - 1) / 4)) - 0.5
    squares = [float(one @ one) for one in (coarse._rounded(halves, SeededNoise(s), 0, s) for s in range(400))]
    assert coarse.l2_squared >= max(squares) > coarse.l2_squared - 12 and halves @ halves <= norm**2
    sufficient = coarse.variance * coarse.sufficient
    assert noise_multiplier_of(sufficient, coarse.l2_squared, coarse.length) >= coarse.noise_multiplier


def test_rounding_is_right_on_average():
    turned = np.full(TERMS.length, 0.25)
    mean = np.mean([TERMS._rounded(turned, SeededNoise(9), 0, step) for step in range(200)])
    assert mean == pytest.approx(0.25, abs=5 * math.sqrt(0.1875 / (200 * TERMS.length)))


def test_turning_spreads_a_single_number_and_keeps_lengths():
    spike = np.zeros(TERMS.width)
    spike[17] = TERMS.max_update_norm
    turned = TERMS._turned(spike, 4)
    assert np.linalg.norm(turned) == pytest.approx(TERMS.max_update_norm, rel=1e-12)
    assert np.abs(turned).max() == pytest.approx(TERMS.max_update_norm / math.sqrt(TERMS.block), rel=1e-12)
    dense = updates(1)[0]
    assert np.abs(TERMS._turned(dense, 4) - TERMS._turned(dense, 5)).max() > 0.01


def test_an_update_longer_than_c_is_not_sent():
    with pytest.raises(ValueError, match="client 2: its update is longer"):
        TERMS.share(updates(1, length=3.0)[0], SeededNoise(1), 2, 0)


def test_noise_of_clients_steps_and_secure_draws_differs_and_seeded_noise_repeats():
    nothing = np.zeros(TERMS.width)
    seeded = [TERMS.share(nothing, SeededNoise(-4), client, step) for client, step in ((0, 0), (1, 0), (0, 1), (0, 0))]
    assert np.array_equal(seeded[0], seeded[3])
    assert all((seeded[0] != other).mean() > 0.9 for other in seeded[1:3])
    assert (TERMS.share(nothing, SecureNoise(), 0, 0) != TERMS.share(nothing, SecureNoise(), 0, 0)).mean() > 0.9


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dropouts": 3, "colluders": 2}, "leave 0 of 5 clients"),
        ({"noise_multiplier": 0.0}, "without noise"),
        ({"bits": 8, "width": 50_000}, "bits=8 are too few"),
    ],
)
def test_terms_under_which_shares_cannot_suffice_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        replace(TERMS, **changes)


def test_a_round_of_shares_moves_the_state_by_the_noisy_average_and_is_charged():
    quiet = replace(TERMS, noise_multiplier=0.01, max_update_norm=2.0)
    server, state = level(quiet), torch.zeros(202)
    index = torch.tensor([*range(200), -1, -1], dtype=torch.int32)
    rows = torch.nn.functional.pad(torch.from_numpy(updates(5, quiet, 0.9)).float(), (0, 2))
    rows[3, 5] = math.nan
    server.open_round(0)
    server.close_round_(state, rows, 0, index)
    expected = rows[[0, 1, 2, 4]].double().sum(0) / 5
    assert float((state - expected)[:200].norm()) < 0.2 * float(expected.norm()) and not bool(state[200:].any())
    assert server.ledger.steps_taken == 1 and server.ledger.adjacency == "zero-out one client"


def test_too_few_shares_leave_the_state_and_are_charged():
    server, state = level(), torch.zeros(200)
    server.open_round(0)
    with pytest.warns(UserWarning, match="3 of 5 clients stayed"):
        server.close_round_(state, torch.ones(3, 200), 0)
    assert not bool(state.any()) and server.ledger.steps_taken == 1
    server.open_round(1)
    server.close_round_(state, torch.ones(4, 200), 1)
    assert bool(state.any())


def test_shares_and_a_ledger_that_counts_other_noise_do_not_go_together():
    central = population(5, 1.0, 1.2, 1e-3, 10)
    for changes, said in (
        ({"ledger": central}, "by-server"),
        ({"shares": None}, "by-server"),
        ({"shares": replace(TERMS, noise_multiplier=1.1)}, "noise_multiplier=1.1"),
        ({"shares": replace(TERMS, clients=6)}, "clients=6"),
        ({"max_update_norm": 0.7}, "max_update_norm=0.5"),
    ):
        with pytest.raises(ValueError, match=said):
            level(**changes)
