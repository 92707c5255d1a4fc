"""Claims: contrasts are what they say, intervals and tests are Student's, and nothing is found where nothing is."""

import math

import numpy as np
import pytest
from scipy import stats

from ffalora.studies.claims import LEVEL, Claim, judge, judge_all

PAIR = {"a@x": 1, "b@x": -1}


def table(**cells):
    """Values by (method, condition, seed) of ``a_x=[...]``, one a seed."""
    return {(*name.split("_"), seed): value for name, values in cells.items() for seed, value in enumerate(values)}


def claim(contrast, **more):
    return Claim(says="It is so", contrast=contrast, **more)


def test_interval_and_p_are_those_of_scipy_on_known_numbers():
    a, b = [0.71, 0.74, 0.69, 0.75, 0.72], [0.70, 0.70, 0.68, 0.71, 0.70]
    verdict = judge(claim(PAIR), table(a_x=a, b_x=b))
    paired = stats.ttest_rel(a, b)
    interval = paired.confidence_interval(0.95)
    assert verdict.seeds == 5 and verdict.outcome == "holds"
    np.testing.assert_allclose(
        [verdict.mean, verdict.low, verdict.high, verdict.p],
        [np.mean(np.subtract(a, b)), interval.low, interval.high, paired.pvalue],
        rtol=1e-9,
    )


def test_a_ratio_is_a_geometric_mean_against_its_own_threshold():
    a, b = [2.0, 2.2, 2.1, 1.9], [1.0, 1.0, 1.1, 1.0]
    verdict = judge(claim(PAIR, ratio=True, above=1.5), table(a_x=a, b_x=b))
    logs = np.log(np.divide(a, b))
    test = stats.ttest_1samp(logs, math.log(1.5))
    interval = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    np.testing.assert_allclose(
        [verdict.mean, verdict.low, verdict.high, verdict.p],
        [stats.gmean(np.divide(a, b)), math.exp(interval.low), math.exp(interval.high), test.pvalue],
        rtol=1e-9,
    )
    assert verdict.outcome == "holds"
    assert judge(claim(PAIR, ratio=True, above=3), table(a_x=a, b_x=b)).outcome == "contradicted"


def test_an_interaction_is_a_difference_of_differences():
    values = table(a_x=[0.9, 0.8], a_y=[0.5, 0.6], b_x=[0.8, 0.8], b_y=[0.7, 0.7])
    verdict = judge(claim({"a@x": 1, "a@y": -1, "b@x": -1, "b@y": 1}), values)
    assert verdict.mean == pytest.approx(((0.4 - 0.1) + (0.2 - 0.1)) / 2)


def test_mean_and_range_are_taken_over_the_conditions_that_the_pattern_names():
    values = table(**{"a_lr-low": [0.5, 0.6], "a_lr-high": [0.7, 0.6], "a_other": [0.1, 0.1], "a_base": [0.8, 0.9]})
    assert judge(claim({"mean a@lr-*": 1}), values).mean == pytest.approx(0.6)
    assert judge(claim({"range a@lr-*": 1}), values).mean == pytest.approx((0.2 + 0.0) / 2)
    assert judge(claim({"range a@base|lr-*": 1}), values).mean == pytest.approx((0.3 + 0.3) / 2)


def test_a_range_over_a_single_condition_is_not_measured():
    assert judge(claim({"range a@x*": 1}), table(a_x1=[0.5, 0.6])).outcome == "not measured"


def test_seeds_that_lack_a_cell_are_left_out():
    values = table(a_x=[0.7, 0.8, 0.9, 0.9], b_x=[0.6, 0.7])
    assert judge(claim(PAIR), values).seeds == 2
    assert judge(claim({"a@x": 1, "c@x": -1}), values).outcome == "not measured"


def test_a_single_seed_decides_nothing():
    verdict = judge(claim(PAIR), table(a_x=[0.9], b_x=[0.1]))
    assert verdict.outcome == "undecided" and math.isnan(verdict.p) and "one seed" in verdict.to_text()


def test_an_infinite_metric_decides_nothing_however_many_seeds_there_are():
    verdict = judge(claim(PAIR), table(a_x=[0.9, math.inf, 0.8], b_x=[0.1, 0.2, 0.3]))
    assert verdict.outcome == "undecided" and math.isnan(verdict.p) and "3 seeds; finite" in verdict.to_text()


def test_seeds_that_agree_exactly_are_judged_by_what_is_measured():
    even = judge(claim(PAIR), table(a_x=[0.5, 0.5, 0.5], b_x=[0.5, 0.5, 0.5]))
    assert (even.outcome, even.p, even.low, even.high) == ("undecided", 1.0, 0.0, 0.0)
    more = claim(PAIR, ratio=True, above=1.9), table(a_x=[98304.0] * 3, b_x=[49152.0] * 3)
    (above,) = judge_all([(*more, True)])
    assert (above.outcome, above.p) == ("holds", 0.0) and above.low == pytest.approx(2) == above.high
    assert "p < 0.0001" in above.to_text()
    (chance,) = judge_all([(*more, False)])
    assert (chance.outcome, chance.p) == ("undecided", 0.25), "three equal accuracies decide nothing"


def test_nothing_is_decided_before_the_last_planned_seed():
    asked = [(claim(PAIR), table(a_x=[0.9, 0.91, 0.92], b_x=[0.1, 0.1, 0.1]), False)]
    (early,), (whole,) = judge_all(asked, planned=5), judge_all(asked)
    assert early.outcome == "unfinished" and math.isnan(early.p) and whole.outcome == "holds"
    assert (early.mean, early.low, early.seeds) == (whole.mean, whole.low, 3)
    assert "so far" in early.to_text() and "the verdict is that of all 5 seeds" in early.to_text()


@pytest.mark.parametrize("seeds", [2, 3])
def test_so_few_seeds_have_no_deviation_to_compare(seeds):
    rng = np.random.default_rng(seeds)
    a, b = 0.01 * rng.standard_normal((2, seeds))
    values = table(a_x=a.tolist(), b_x=b.tolist())
    assert judge(claim({"deviation a@x": 1, "deviation b@x": -1}), values).outcome == "not measured"


@pytest.mark.parametrize(
    ("sign", "outcome", "words"), [(1, "holds", ": holds;"), (-1, "contradicted", ": is contradicted;")]
)
def test_the_sentence_says_what_the_interval_says(sign, outcome, words):
    verdict = judge(claim(PAIR), table(a_x=[0.5 + sign * 0.2, 0.5 + sign * 0.21, 0.5 + sign * 0.19], b_x=[0.5] * 3))
    assert verdict.outcome == outcome and words in verdict.to_text() and "3 seeds" in verdict.to_text()


@pytest.mark.long
def test_no_more_than_the_stated_share_of_claims_is_decided_where_nothing_is_to_be_found():
    """Two-sided 95% intervals: 2.5% of true nulls may pass for holding, and 2.5% for contradicted.

    3,000 studies of five seeds whose methods are equal, with a seed effect that both share four times as large as the
    noise. Each count is binomial(3000, 0.025): mean 75, and above 115 or below 41 with probability below 1e-5.
    """
    rng = np.random.default_rng(7)
    outcomes = []
    for _ in range(3000):
        seeds = 0.04 * rng.standard_normal(5)
        a, b = seeds + 0.01 * rng.standard_normal((2, 5))
        outcomes.append(judge(claim(PAIR), table(a_x=a.tolist(), b_x=b.tolist())).outcome)
    assert 41 <= outcomes.count("holds") <= 115 and 41 <= outcomes.count("contradicted") <= 115


def test_a_difference_is_found_beneath_a_shared_seed_effect():
    rng = np.random.default_rng(3)
    seeds = 0.2 * rng.standard_normal(5)
    a, b = seeds + 0.02 + 0.002 * rng.standard_normal(5), seeds + 0.002 * rng.standard_normal(5)
    assert judge(claim(PAIR), table(a_x=a.tolist(), b_x=b.tolist())).outcome == "holds"
    assert stats.ttest_ind(a, b).pvalue > 0.5


@pytest.mark.parametrize("term", ["nobody@x", "a@nowhere", "mean a@z*"])
def test_a_term_that_names_nothing_is_refused(term):
    with pytest.raises(ValueError, match="names nothing in the grid"):
        claim({term: 1}).check_names(["a", "b"], ["x", "y"])


def test_a_term_of_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="write method@condition"):
        claim({"median a@x": 1}).check_names(["a"], ["x"])


def test_claims_that_are_tested_together_are_corrected_by_holms_procedure():
    rng = np.random.default_rng(2)
    asked = [(claim(PAIR), table(a_x=(0.7 + 0.01 * rng.standard_normal(6) + d).tolist(), b_x=[0.7] * 6)) for d in
             (0.0, 0.004, 0.012, 0.03)]  # fmt: skip
    alone, together = [judge(*each) for each in asked], judge_all([(*each, False) for each in asked])
    order = np.argsort([v.p for v in alone])
    wanted = np.maximum.accumulate([min(1, (4 - i) * alone[k].p) for i, k in enumerate(order)])
    np.testing.assert_allclose([together[k].p for k in order], wanted)
    assert all((v.outcome == "undecided") == (v.p >= LEVEL) for v in together)
    assert [(v.mean, v.low, v.high) for v in together] == [(v.mean, v.low, v.high) for v in alone]


@pytest.mark.long
def test_a_study_in_which_nothing_is_to_be_found_seldom_decides_any_claim():
    """1,000 studies of six claims: with p at 5% each, 26% would decide one; with Holm's at most 5% (4 sigma)."""
    rng = np.random.default_rng(9)
    found = 0
    for _ in range(1000):
        asked = [(claim(PAIR), table(a_x=rng.standard_normal(5).tolist(), b_x=[0.0] * 5)) for _ in range(6)]
        found += any(v.outcome != "undecided" for v in judge_all([(*each, False) for each in asked]))
    assert 20 < found < 50 + 4 * math.sqrt(50 * 0.95)


def test_shares_of_good_and_failed_conditions_are_counted_beside_the_seeds_best():
    values = table(**{"a_r1": [0.80, 0.60], "a_r2": [0.79, 0.70], "a_r3": [0.69, 0.45], "a_r4": [0.40, 0.695]})
    assert judge(claim({"good a@r*": 1}), values).mean == pytest.approx((2 / 4 + 2 / 4) / 2)
    assert judge(claim({"failed a@r*": 1}), values).mean == pytest.approx((2 / 4 + 1 / 4) / 2)


def test_deviations_are_those_that_brown_and_forsythe_compare():
    rng = np.random.default_rng(4)
    a, b = 0.7 + 0.05 * rng.standard_normal(12), 0.7 + 0.005 * rng.standard_normal(12)
    verdict = judge(claim({"deviation a@x": 1, "deviation b@x": -1}), table(a_x=a.tolist(), b_x=b.tolist()))
    spread = [np.mean(np.abs(each - np.median(each))) for each in (a, b)]
    assert verdict.mean == pytest.approx(spread[0] - spread[1]) and verdict.outcome == "holds"
    assert judge(claim({"deviation a@x": 1}), table(a_x=[0.7])).outcome == "not measured"


def test_an_undecided_claim_says_whether_a_difference_of_a_point_is_excluded():
    near = judge(claim(PAIR), table(a_x=[0.701, 0.699, 0.7, 0.702], b_x=[0.7] * 4))
    wide = judge(claim(PAIR), table(a_x=[0.75, 0.65, 0.7, 0.72], b_x=[0.7] * 4))
    assert near.is_narrow and "a difference of a point is excluded" in near.to_text()
    assert not wide.is_narrow and "excluded" not in wide.to_text()
