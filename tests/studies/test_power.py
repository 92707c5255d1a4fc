"""The number of seeds finds what it says, as often as it says."""

import math

import numpy as np
import pytest
from scipy import stats

from ffalora.studies.claims import Claim
from ffalora.studies.power import EFFECT, POWER, claims_power, planned_seeds, power_of, seeds_for

PAIR = Claim(says="It is so", contrast={"a@x": 1, "b@x": -1})
FOUR = Claim(says="It is more so", contrast={"a@x": 1, "a@y": -1, "b@x": -1, "b@y": 1})
MEANS = Claim(says="It is so on average", contrast={"mean a@*": 1, "mean b@*": -1})
PLACES = [(method, condition) for method in "ab" for condition in "xy"]
RANGE = Claim(says="It moves", contrast={"range a@*": 1})


def test_power_is_the_share_of_simulated_studies_that_find_the_effect():
    """4,000 studies: the share's standard error is below 0.008."""
    rng = np.random.default_rng(11)
    for seeds, deviation, level in ((5, 0.008, 0.05), (12, 0.02, 0.01)):
        studies = EFFECT + deviation * rng.standard_normal((4000, seeds))
        found = stats.ttest_1samp(studies, 0, axis=1).pvalue < level
        assert power_of(seeds, deviation, level=level) == pytest.approx(found.mean(), abs=0.025)


def test_the_number_of_seeds_is_the_fewest_that_suffices():
    seeds = seeds_for(0.012)
    half = stats.t.ppf(0.975, seeds - 1) * 0.012 / math.sqrt(seeds)
    assert power_of(seeds, 0.012) >= POWER and half <= 0.01
    short = stats.t.ppf(0.975, seeds - 2) * 0.012 / math.sqrt(seeds - 1)
    assert power_of(seeds - 1, 0.012) < POWER or short > 0.01
    assert seeds_for(0.0) == 5 == seeds_for(1e-17, 0.007) and seeds_for(0.1) is None and seeds_for(0.012, 0.01) >= seeds


def test_a_contrast_of_more_cells_needs_more_seeds_and_a_range_decides_nothing():
    rng = np.random.default_rng(5)
    pilot = {
        (m, c, s): 0.7 + 0.05 * s + 0.004 * rng.standard_normal() for m in "ab" for c in "xy" for s in range(1000, 1040)
    }
    pair, four = claims_power([PAIR, FOUR, RANGE], pilot, PLACES)
    assert pair.deviation == pytest.approx(0.004 * math.sqrt(2), rel=0.2), "what seeds share is not in the contrast"
    assert four.deviation == pytest.approx(math.sqrt(2) * pair.deviation) and four.seeds >= pair.seeds
    assert planned_seeds([pair, four]) == four.seeds and planned_seeds([]) == 5
    assert claims_power([RANGE], pilot, PLACES) == [] == claims_power([PAIR], {}, PLACES)


def test_a_mean_over_conditions_varies_less_than_one_of_them():
    rng = np.random.default_rng(5)
    pilot = {(m, c, s): 0.7 + 0.02 * rng.standard_normal() for m in "ab" for c in "xy" for s in range(1000, 1200)}
    pair, means = claims_power([PAIR, MEANS], pilot, PLACES)
    assert means.deviation == pytest.approx(pair.deviation / math.sqrt(2)), "two cells of weight 1/2 for one of 1"
    assert pair.deviation == pytest.approx(0.02 * math.sqrt(2), rel=0.1)
    more = [(method, condition) for method in "ab" for condition in "vwxyz"]
    _, wider = claims_power([PAIR, MEANS], pilot, more)
    assert wider.deviation == pytest.approx(pair.deviation / math.sqrt(5)), "the verdict has more conditions"
    assert wider.seeds < means.seeds
    own = Claim(says="It is better than usual", contrast={"a@x": 1, "mean a@*": -1})
    assert claims_power([own, PAIR], pilot, PLACES)[0].deviation == pytest.approx(0.02 * math.sqrt(0.5), rel=0.1)
