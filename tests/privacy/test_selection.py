"""A private choice of hyper-parameters: the drawn number of trials, and what it costs beside a sweep."""

import math
from itertools import islice

import numpy as np
import pytest

from ffalora.privacy.accountants import epsilon_of
from ffalora.privacy.selection import Trials, selection_epsilon, sweep_epsilon
from ffalora.privacy.spent import Spent

ONE = [Spent(1.5, 0.05, 100)]
SHAPES = (0.0, 0.5, 1.0, 3.0, math.inf)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_number_of_trials_has_the_mean_and_the_distribution_that_are_named(shape):
    trials = Trials(7.0, shape)
    numbers, chances = np.array(list(islice(trials.probabilities(), 20_000))).T
    assert chances.sum() == pytest.approx(1, abs=1e-9) and numbers @ chances == pytest.approx(7, rel=1e-6)
    assert numbers[0] == (0 if math.isinf(shape) else 1)
    drawn = np.array([trials.draw() for _ in range(4000)])
    spread = math.sqrt((numbers - 7) ** 2 @ chances)
    assert abs(drawn.mean() - 7) < 6 * spread / math.sqrt(4000)


def test_the_geometric_distribution_is_the_shape_of_one():
    trials = Trials(5.0)
    assert trials.gamma == pytest.approx(1 / 5, rel=1e-9)
    assert [chance for _, chance in islice(trials.probabilities(), 3)] == pytest.approx([0.2, 0.16, 0.128], rel=1e-9)


@pytest.mark.parametrize("shape", [0.0, 0.5, 1.0, 3.0])
def test_epsilon_is_that_of_the_theorem_and_never_below_it(shape):
    """Theorem 2 by hand, for a Gaussian mechanism, over a fine grid of both orders."""
    sigma, trials, delta = 4.0, Trials(12.0, shape), 1e-6
    orders = np.linspace(1.01, 300, 30_000)
    divergence = orders / (2 * sigma**2)
    constant = (1 + shape) * np.min((1 - 1 / orders) * divergence + math.log(1 / trials.gamma) / orders)
    whole = divergence + constant + math.log(trials.mean) / (orders - 1)
    by_hand = np.min(whole + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1))
    found = selection_epsilon([Spent(sigma, 1.0, 1)], trials, delta)
    assert by_hand * (1 - 1e-6) <= found < by_hand * 1.05


def test_a_choice_costs_more_than_a_trial_and_less_than_a_sweep_of_many():
    one = sweep_epsilon(ONE, 1, 1e-5)
    assert one == pytest.approx(epsilon_of(ONE, 1e-5, "rdp"), rel=0.02)
    for shape in SHAPES:
        chosen = selection_epsilon(ONE, Trials(30.0, shape), 1e-5)
        assert one < chosen < sweep_epsilon(ONE, 30, 1e-5)


@pytest.mark.parametrize(("mean", "shape"), [(1.0, 1.0), (0.5, 1.0), (1e6, 1.0), (5.0, -0.5), (5.0, math.nan)])
def test_numbers_of_trials_out_of_range_are_refused(mean, shape):
    with pytest.raises(ValueError, match="must"):
        Trials(mean, shape)


@pytest.mark.parametrize("part", [Spent(1.0, 1.0, 3, "by-server"), Spent(1.0, 0.1, 3, group=4, unit="user")])
def test_steps_that_are_not_gaussian_are_refused(part):
    with pytest.raises(ValueError, match="Gaussian steps"):
        selection_epsilon([part], Trials(5.0), 1e-5)
