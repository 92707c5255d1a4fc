"""Draws with the right probabilities, equal wherever they are made, and physical batches that pad least."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi2

from ffalora.privacy.sampling import (
    SeededDraw,
    SystemDraw,
    bounded_records,
    fixed_size_draw,
    poisson_draw,
    records_of,
    shuffled_batches,
)
from ffalora.training.batches import grouped_batches, packed_batches, physical_batches

#: Each statistical test below fails by chance with at most this probability (seeded ones: decided once, for ever).
FALSE_ALARM = 1e-6


@pytest.mark.parametrize("draw", [SeededDraw(11), SystemDraw()], ids=["seeded", "system"])
@pytest.mark.parametrize("rate", [0.003, 0.1, 0.5])
def test_poisson_draw_includes_each_record_with_the_stated_probability(draw, rate):
    n, steps = 400, 500
    counts = np.zeros(n)
    sizes = np.zeros(steps)
    for step in range(steps):
        index = draw(3, step, n, rate)
        assert np.array_equal(index, np.unique(index)) and index.dtype == np.int64
        counts[index] += 1
        sizes[step] = len(index)
    low, high = binom.ppf([FALSE_ALARM / 6, 1 - FALSE_ALARM / 6], n * steps, rate)
    assert low <= counts.sum() <= high
    # Spread over records and over steps: chi-square of independent draws.
    for observed, trials in ((counts, steps), (sizes, n)):
        statistic = ((observed - trials * rate) ** 2).sum() / (trials * rate * (1 - rate))
        slack = 1.25 if trials * rate < 5 else 1.0  # few expected counts: the binomial's tails exceed chi-square's
        assert chi2.ppf(FALSE_ALARM / 6, len(observed)) / slack <= statistic
        assert statistic <= slack * chi2.ppf(1 - FALSE_ALARM / 6, len(observed))


def test_size_of_a_batch_is_binomial():
    assert len({len(poisson_draw(0, 0, step, 1000, 0.1)) for step in range(50)}) > 10


def test_draw_depends_on_its_arguments_alone():
    first = poisson_draw(5, 2, 9, 300, 0.2)
    poisson_draw(5, 3, 9, 300, 0.2)
    np.random.seed(0)
    assert np.array_equal(first, poisson_draw(5, 2, 9, 300, 0.2))
    assert np.array_equal(first, SeededDraw(5)(2, 9, 300, 0.2))


def test_draws_of_another_seed_client_or_step_differ():
    named = [(5, 2, 9), (6, 2, 9), (5, 3, 9), (5, 2, 10), (2, 5, 9), (5, 9, 2), (5 + 2**32, 2, 9), (5, 2 + 2**32, 9)]
    draws = [tuple(poisson_draw(*name, 300, 0.5)) for name in named]
    assert len(set(draws)) == len(draws)


def test_stream_is_the_recorded_one_so_that_old_runs_resume():
    assert poisson_draw(1, 2, 3, 100, 0.05).tolist() == [39, 41, 61, 87]


def test_edges_draw_nobody_or_everybody_and_bad_rates_are_refused():
    assert len(poisson_draw(0, 0, 0, 0, 0.5)) == 0
    assert len(poisson_draw(0, 0, 0, 50, 0.0)) == 0
    assert poisson_draw(0, 0, 0, 50, 1.0).tolist() == list(range(50))
    assert SystemDraw()(0, 0, 50, 1.0).tolist() == list(range(50))
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="rate"):
            poisson_draw(0, 0, 0, 50, bad)
    with pytest.raises(ValueError, match="seed"):
        poisson_draw(-1, 0, 0, 50, 0.5)


def test_secure_draw_cannot_be_repeated():
    assert not np.array_equal(SystemDraw()(0, 0, 1000, 0.5), SystemDraw()(0, 0, 1000, 0.5))
    assert SystemDraw.secure and not SeededDraw.secure


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (12, 4), (5, 8), (1, 1)])
def test_epoch_holds_every_record_once(n, batch):
    per_epoch = -(-n // batch)
    for epoch in range(3):
        seen = np.concatenate([shuffled_batches(1, 2, epoch * per_epoch + i, n, batch) for i in range(per_epoch)])
        assert sorted(seen.tolist()) == list(range(n))


def test_every_epoch_has_an_order_of_its_own():
    orders = {tuple(shuffled_batches(1, 2, epoch, 20, 20)) for epoch in range(5)}
    assert len(orders) == 5


def test_fixed_size_draw_holds_distinct_records_of_the_stated_number():
    drawn = fixed_size_draw(1, 2, 3, 20, 7)
    assert len(set(drawn.tolist())) == 7
    with pytest.raises(ValueError, match="batch_size"):
        fixed_size_draw(1, 2, 3, 5, 6)


lengths_strategy = st.lists(st.integers(0, 90), max_size=60)


@given(lengths_strategy, st.integers(1, 600), st.none() | st.integers(1, 9), st.integers(0, 200))
@example([0, 0], 1, None, 0)  # samples without a token take the room of one
@settings(max_examples=200)
def test_physical_batches_hold_every_sample_within_the_budget(lengths, budget, max_samples, overhead):
    plan = physical_batches(lengths, budget, max_samples, overhead)
    assert sorted(i for batch in plan.batches for i in batch.tolist()) == list(range(len(lengths)))
    padded = 0
    for batch in plan.batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * max(longest, 1) <= budget
        assert max_samples is None or len(batch) <= max_samples
        padded += len(batch) * longest
    assert plan.padded_tokens == padded and plan.tokens == sum(lengths)
    assert 0 < plan.tokens <= plan.padded_tokens or padded == 0


@given(st.lists(st.integers(1, 20), min_size=1, max_size=9), st.integers(1, 60), st.integers(0, 30))
@settings(max_examples=100)
def test_no_other_cut_of_the_sorted_batch_is_cheaper(lengths, budget, overhead):
    plan = physical_batches(lengths, budget, overhead=overhead)
    ordered = sorted(lengths, reverse=True)
    cheapest = math.inf
    for cuts in itertools.product([False, True], repeat=len(ordered) - 1):
        bounds = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(ordered)]
        parts = [ordered[a:b] for a, b in itertools.pairwise(bounds)]
        if all(len(part) == 1 or len(part) * part[0] <= budget for part in parts):
            cheapest = min(cheapest, sum(len(part) * part[0] + overhead for part in parts))
    assert plan.padded_tokens + overhead * len(plan.batches) == cheapest


def test_large_overhead_gives_the_fewest_batches():
    lengths = np.random.default_rng(0).integers(5, 60, 200)
    plan = physical_batches(lengths, 512, overhead=10**9)
    greedy, ordered = 0, sorted(lengths.tolist(), reverse=True)
    while ordered:
        ordered = ordered[max(1, 512 // ordered[0]) :]
        greedy += 1
    assert len(plan.batches) == greedy


@given(lengths_strategy, st.integers(1, 600), st.none() | st.integers(1, 9))
@settings(max_examples=200)
def test_packed_batches_hold_every_sample_within_the_budget_and_are_filled(lengths, budget, max_samples):
    plan = packed_batches(lengths, budget, max_samples)
    assert sorted(i for batch in plan.batches for i in batch.tolist()) == list(range(len(lengths)))
    sizes = [sum(lengths[i] for i in batch) for batch in plan.batches]
    for number, batch in enumerate(plan.batches):
        assert len(batch) == 1 or sizes[number] <= budget
        assert max_samples is None or len(batch) <= max_samples
        if number + 1 < len(plan.batches):
            first = plan.batches[number + 1][0]
            assert sizes[number] + lengths[first] > budget or len(batch) == max_samples
    assert plan.padded_tokens == plan.tokens == sum(lengths)


def test_empty_batch_is_cut_into_none_and_bad_budgets_are_refused():
    empty = physical_batches([], 100)
    assert empty.batches == () and empty.padded_tokens == 0
    assert packed_batches([], 100).batches == ()
    for cut in (physical_batches, packed_batches):
        with pytest.raises(ValueError, match="token_budget"):
            cut([3], 0)
    with pytest.raises(ValueError, match="lengths"):
        physical_batches([3, -1], 10)


OWNER = np.array([7, 3, 3, 9, 7, 7, 3, 7])


@pytest.mark.parametrize("draw", [SeededDraw(1), SystemDraw()])
def test_at_most_k_records_of_each_drawn_user_are_taken_and_all_of_a_small_one(draw):
    found = records_of(np.array([1, 2]), OWNER, 3, partial(draw.some, 0, 0))
    assert OWNER[found].tolist().count(7) == 3 and OWNER[found].tolist().count(9) == 1
    assert found.tolist() == sorted(set(found.tolist())) and not (OWNER[found] == 3).any()
    assert records_of(np.array([], dtype=int), OWNER, 3, partial(draw.some, 0, 0)).tolist() == []


def test_every_record_of_a_user_is_as_likely_as_the_others():
    counts = np.zeros(8)
    for step in range(600):
        counts[SeededDraw(5).some(0, step, 2, 8, 2)] += 1
    assert np.abs(counts / 600 - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 600)
    assert SeededDraw(5).some(0, 1, 2, 8, 2).tolist() == SeededDraw(5).some(0, 1, 2, 8, 2).tolist()


@settings(max_examples=60)
@given(
    owners=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=3, unique=True), max_size=40),
    most=st.integers(1, 4),
    seed=st.integers(0, 2**40),
)
def test_nobody_owns_more_than_k_of_the_records_that_are_kept_and_none_more_could_be(owners, most, seed):
    starts = np.cumsum([0, *map(len, owners)])
    kept = bounded_records(np.array([u for each in owners for u in each], dtype=np.int64), starts, most, seed)
    held = np.bincount([u for record in kept for u in owners[record]], minlength=7)
    assert held.max(initial=0) <= most
    for record in set(range(len(owners))) - set(kept.tolist()):
        assert max(held[owners[record]]) == most


def test_processes_that_draw_alike_take_the_same_records_of_a_user():
    alike, other = SystemDraw(bytes(32)), SystemDraw(b"1" * 32)
    taken = [alike.some(0, 3, user, 1000, 20).tolist() for user in (5, 5, 6)]
    assert taken[0] == taken[1] != taken[2] and taken[0] != other.some(0, 3, 5, 1000, 20).tolist()
    assert SystemDraw().some(0, 3, 5, 1000, 20).tolist() != SystemDraw().some(0, 3, 5, 1000, 20).tolist()


def test_a_bound_below_one_record_is_refused():
    for refused in (
        lambda: records_of(np.array([0]), OWNER, 0, lambda *_: OWNER),
        lambda: bounded_records(OWNER, np.arange(9), 0, 1),
    ):
        with pytest.raises(ValueError, match="most must be at least 1, got 0"):
            refused()


@given(
    lengths=st.lists(st.integers(1, 50), max_size=40),
    budget=st.integers(1, 300),
    most=st.sampled_from([None, 1, 3]),
    packed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_no_group_is_cut_and_only_a_group_alone_exceeds_the_budget(lengths, budget, most, packed, seed):
    groups = np.random.default_rng(seed).integers(0, 8, len(lengths))
    plan = grouped_batches(lengths, groups, budget, most, packed)
    assert sorted(np.concatenate([np.empty(0, int), *plan.batches]).tolist()) == list(range(len(lengths)))
    held = [set(groups[batch]) for batch in plan.batches]
    assert sum(map(len, held)) == len(set(groups.tolist()))
    for batch, own in zip(plan.batches, held, strict=True):
        size = np.array(lengths)[batch]
        assert (size.sum() if packed else len(size) * size.max()) <= budget or len(own) == 1
        assert most is None or len(own) <= most
    assert plan.tokens == sum(lengths) <= plan.padded_tokens
