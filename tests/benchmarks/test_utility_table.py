"""What the utility table makes of its CSV: paired differences, their intervals, p-values of several sets."""

import bench_path  # noqa: F401
import numpy as np
import pytest
from utility_table import best_trivial, differences, every_method, holm, options, over_sets, resampled


def test_holm_multiplies_each_p_by_how_many_are_not_yet_rejected_and_never_falls():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_differences_are_of_the_seeds_that_both_have():
    first = {"0": np.array([1.0, 1.0]), "1": np.array([0.0, 1.0])}
    assert differences(first, {"1": np.array([1.0, 0.0]), "2": np.ones(2)}).tolist() == [[-1.0, 1.0]]
    assert differences(first, {"3": np.ones(2)}) is None


def test_resampled_means_spread_as_seeds_and_samples_do():
    rng = np.random.default_rng(1)
    seeds, samples = rng.normal(0, 0.02, (10, 1)), rng.normal(0.01, 0.5, (1, 400))
    drawn = resampled(seeds + samples)
    wanted = np.sqrt(seeds.var() / 10 + samples.var() / 400)
    assert drawn.std() == pytest.approx(wanted, rel=0.05)
    assert drawn.mean() == pytest.approx((seeds + samples).mean(), abs=0.002)


def test_sets_are_held_against_the_best_of_what_needs_no_training():
    right = lambda share: {str(s): (np.arange(200) < 200 * share).astype(float) for s in range(2)}  # noqa: E731
    found = {
        ("boolq", "3", "ffa"): right(0.7),
        ("boolq", "3", "probe"): right(0.6),
        ("boolq", "3", "means"): right(0.5),
    }
    found[("editorials", "3", "ffa")] = found[("editorials", "3", "texts")] = right(0.5)
    assert best_trivial(found, "boolq", "3") == "probe"
    lines = list(over_sets(found, None))
    assert [line.split(" | ")[:3] for line in lines[2:4]] == [["| editorials", "texts", "2"], ["| boolq", "probe", "2"]]
    assert "| +0.1000 (" in lines[3] and lines[4].startswith("| average of 2 sets | | | +0.0")
    assert any(
        "| boolq | 3 | probe | 2 | 0.6000 | 0.0000 | +0.1000 (" in line for line in every_method(found, ["boolq"])
    )


def test_one_seed_is_one_seed():
    found = {("boolq", "3", method): {"0": np.array([1.0, share])} for method, share in (("ffa", 1.0), ("probe", 0.0))}
    (line,) = [line for line in every_method(found, ["boolq"]) if "| probe |" in line]
    assert line.endswith("; 1 seed) |")


def test_options_are_held_against_the_recipe_on_the_same_seeds():
    found = {("tweets", "3", "ffa"): {"100": np.array([1.0, 0.0]), "101": np.ones(2)}}
    found[("tweets", "3", "other")] = {"100": np.ones(2)}
    lines = list(options(found))
    assert lines[2] == "| ffa | 2 | 0.7500 |  |" and lines[3].startswith("| other | 1 | 1.0000 | +0.5000 (+0.0000 to")
