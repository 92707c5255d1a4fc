"""Robust means: what is published, one column or one pair of clients at a time, and how far hostile clients get."""

import numpy as np
import pytest
import torch
from small_runs import CLIENT_LEVEL

from ffalora.config import ConfigError
from ffalora.federated.cohort import train_cohort
from ffalora.federated.experiment import build
from ffalora.federated.flower.rounds import check_secure_aggregation
from ffalora.federated.one_site import alone
from ffalora.federated.robust import (
    ROBUST_MEANS,
    coordinate_median,
    krum,
    multi_krum,
    norm_bounded_mean,
    robust_mean,
    trimmed_mean,
)
from ffalora.federated.simulate import close_round, end_round, open_round, run_round
from ffalora.federated.strategies import STRATEGIES
from ffalora.federated.strategies.base import Answers, weighted_mean


def rows_of(count, size=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator)


def equal(count):
    return torch.full((count,), 1 / count, dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_the_median_is_that_of_each_column(count):
    rows = rows_of(count)
    found = coordinate_median(torch.zeros(7), rows, equal(count))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, np.median(rows.double().numpy(), axis=0), rtol=1e-6)


@pytest.mark.parametrize("hostile", [0, 1, 2])
def test_the_trimmed_mean_leaves_out_each_column_s_extremes(hostile):
    from scipy.stats import trim_mean

    rows = rows_of(6)
    found = trimmed_mean(torch.zeros(7), rows, equal(6), hostile=hostile)
    np.testing.assert_allclose(found, trim_mean(rows.double().numpy(), hostile / 6 + 1e-9, axis=0), rtol=1e-6)


def krum_scores(rows, hostile):
    """By the definition, one pair at a time."""
    points = rows.double().numpy()
    scores = []
    for i, point in enumerate(points):
        others = sorted(float(((point - other) ** 2).sum()) for j, other in enumerate(points) if j != i)
        scores.append(sum(others[: len(points) - hostile - 2]))
    return scores


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("hostile", [0, 1, 2])
def test_krum_takes_the_row_with_the_nearest_neighbours_and_multi_krum_the_mean_of_the_best(seed, hostile):
    rows = rows_of(7, seed=seed)
    order = np.argsort(krum_scores(rows, hostile), kind="stable")
    assert torch.equal(krum(torch.zeros(7), rows, equal(7), hostile=hostile), rows[order[0]])
    expected = rows[order[: 7 - hostile].copy()].double().mean(0)
    torch.testing.assert_close(multi_krum(torch.zeros(7), rows, equal(7), hostile=hostile), expected.float())


def test_a_norm_bound_shortens_long_updates_and_keeps_weights_and_short_ones():
    start = rows_of(1)[0]
    updates = torch.nn.functional.normalize(rows_of(3, seed=1), dim=1) * torch.tensor([[0.5], [1.0], [50.0]])
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    found = norm_bounded_mean(start, start + updates, weights, bound=1.0)
    expected = start + 0.2 * updates[0] + 0.3 * updates[1] + 0.5 * updates[2] / 50
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, norm_bounded_mean(start, start + updates, weights))  # the median norm is 1 too


@pytest.mark.parametrize("name", ROBUST_MEANS)
@pytest.mark.parametrize("huge", [1e6, 3e38])
def test_one_hostile_client_of_five_moves_the_average_no_further_than_honest_clients_differ(name, huge):
    start, honest = torch.zeros(7), rows_of(4)
    rows = torch.cat([honest, torch.full((1, 7), huge)])
    weights = torch.tensor([0.05, 0.05, 0.05, 0.05, 0.8], dtype=torch.float64)
    found = robust_mean(name, hostile=1)(start, rows, weights)
    assert found.isfinite().all() and float(found.norm()) <= 2 * float(honest.norm(dim=1).max())


@pytest.mark.parametrize("name", ROBUST_MEANS)
def test_honest_clients_that_agree_are_left_as_they_are(name):
    rows = rows_of(1).expand(5, -1).clone()
    torch.testing.assert_close(robust_mean(name, hostile=1)(torch.zeros(7), rows, equal(5)), rows[0])


def test_too_few_clients_for_a_guarantee_are_refused_with_the_number_that_is_needed():
    with pytest.raises(ConfigError, match=r"4 clients answered, 5 are needed for federation\.hostile_clients=1"):
        krum(torch.zeros(7), rows_of(4), equal(4), hostile=1)
    with pytest.raises(ConfigError, match="below half"):
        trimmed_mean(torch.zeros(7), rows_of(4), equal(4), hostile=2)


def test_a_cohort_too_small_for_the_guarantee_is_refused_before_anything_is_trained(small):
    with pytest.raises(ConfigError, match=r"krum with federation\.hostile_clients=1 needs 5 clients in a round.*are 3"):
        build(small(clients__count=6, federation__participation=0.5, federation__robust_mean="krum"))


@pytest.mark.parametrize("strategy", ["ffa", "fedsvd", "fedsa"])
def test_a_round_with_too_few_answers_changes_nothing_and_says_so(small, strategy):
    changes = {"clients__count": 5, "federation__robust_mean": "krum", "federation__strategy": strategy}
    server = {} if strategy == "fedsvd" else {"federation__server_optimizer": "fedavgm"}
    experiment = build(small(**changes, **server))
    state = experiment.strategy.begin()
    run_round(experiment, state)
    row, tensors = state.row.clone(), {name: value.clone() for name, value in state.tensors.items()}
    rows = experiment.strategy.start(state, [0, 1, 2, 3])
    rows = rows + rows_of(4, rows.shape[1])
    with pytest.warns(UserWarning, match="4 clients answered a round.*needs 5"):
        end_round(experiment, state, Answers([0, 1, 2, 3], rows, equal(4), experiment.mean))
    assert torch.equal(state.row, row) and state.round == 2
    assert all(torch.equal(value, tensors[name]) for name, value in state.tensors.items())
    if experiment.strategy.personal:  # what a client does not share is with it, whatever became of the rest
        assert bool((experiment.strategy.start(state, [2])[0] == rows[2]).any())


def test_a_bound_that_no_mean_uses_is_refused(small):
    for kind in (None, "median"):
        with pytest.raises(ConfigError, match=r"norm_bound=0\.1 is given, but robust_mean=.* set robust_mean to 'norm"):
            small(federation__norm_bound=0.1, federation__robust_mean=kind)


@pytest.mark.parametrize(("strategy", "every", "fits"), [("fedsvd", 1, False), ("fedsvd", 2, True), ("ffa", 1, True)])
def test_a_server_s_momentum_is_refused_where_it_would_be_forgotten_every_round(small, strategy, every, fits):
    changes = {"federation__strategy": strategy, "federation__refactor_every": every}
    build(small(**changes, federation__server_lr=0.5))
    momentum = small(**changes, federation__server_optimizer="fedavgm")
    if fits:
        build(momentum)
        return
    with pytest.raises(ConfigError, match=r"server_optimizer='fedavgm' .*refactor_every=1 in every round"):
        build(momentum)


def test_a_site_alone_neither_distrusts_nor_rounds_itself(small):
    config = alone(small(clients__count=5, federation__robust_mean="krum", federation__payload="int8"))
    assert config.federation.robust_mean is None and config.federation.payload == "float32"
    bounded = alone(small(federation__robust_mean="norm-bounded", federation__norm_bound=0.1))
    assert bounded.federation.robust_mean is bounded.federation.norm_bound is None


@pytest.mark.parametrize(
    "changes,said",
    [
        (CLIENT_LEVEL, r"does not go with privacy\.unit='client'"),
        ({"federation__strategy": "flora"}, r"does not go with federation\.strategy='flora'"),
    ],
)
def test_a_robust_mean_is_refused_where_another_guarantee_needs_the_plain_sum(small, changes, said):
    with pytest.raises(ConfigError, match=rf"federation\.robust_mean='median' {said}"):
        build(small(federation__robust_mean="median", **changes))


def test_a_robust_mean_is_refused_under_secure_aggregation(small):
    config = small(federation__robust_mean="krum", federation__weighting="uniform")
    with pytest.raises(ConfigError, match=r"federation\.robust_mean='krum' compares clients' own numbers"):
        check_secure_aggregation(STRATEGIES["ffa"], config)


def hostile_round(config, robust):
    """The norm of the global row after a round in which the last client sends a million times its update."""
    experiment = build(config)
    server, strategy = experiment.strategy.begin(), experiment.strategy
    opened = open_round(experiment, server)
    report = train_cohort(experiment, server, opened.cohort, opened.rows)
    opened.rows[-1] = server.row + 1e6 * (opened.rows[-1] - server.row)
    close_round(experiment, server, opened, report, 0.0)
    assert strategy.linear and (experiment.mean is weighted_mean) == (robust is None)
    return float(server.row.norm())


@pytest.mark.parametrize("robust", ROBUST_MEANS)
def test_the_option_puts_the_robust_mean_in_the_place_of_the_plain_one(small, robust):
    terms = {"clients__count": 5, "federation__rounds": 1, "federation__local_steps": 1}
    assert hostile_round(small(**terms), None) > 1e3
    assert hostile_round(small(federation__robust_mean=robust, **terms), robust) < 10


def test_an_unknown_mean_is_refused_with_those_that_there_are():
    with pytest.raises(ConfigError, match="median, trimmed-mean, krum, multi-krum, norm-bounded"):
        robust_mean("average", hostile=1)
