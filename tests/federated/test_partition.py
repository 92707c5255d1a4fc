"""Partitions: nobody shares a sample, the mix is the one asked for, and a client without data is an error."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffalora.federated.partition import PartitionError, by_column, by_quantity, describe, make_partition

SKEW = [[0.1, 0.9], [0.9, 0.1], [0.5, 0.5]]


def labels_of(samples: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, samples)


def used(partition) -> np.ndarray:
    return np.concatenate([np.asarray(part) for part in partition])


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["iid", "dirichlet", "quantity"]),
    samples=st.integers(60, 400),
    clients=st.integers(1, 6),
    classes=st.integers(2, 5),
    seed=st.integers(0, 2**40),
)
def test_no_sample_is_lost_or_held_twice(kind, samples, clients, classes, seed):
    partition = make_partition(kind, labels=labels_of(samples, classes), clients=clients, seed=seed, beta=5.0)
    assert sorted(used(partition).tolist()) == list(range(samples))
    assert len(partition) == clients


def test_label_proportions_are_met_and_nearly_all_balanced_samples_used():
    labels = np.repeat([0, 1], 3000)
    partition = make_partition("labels", labels=labels, proportions=SKEW, seed=3)
    for part, (share, _) in zip(partition, SKEW, strict=True):
        assert np.mean(labels[part] == 0) == pytest.approx(share, abs=1e-3)
    assert partition.sizes.tolist() == [2000, 2000, 2000]
    assert len(np.unique(used(partition))) == 6000


def test_label_proportions_never_use_a_scarce_class_twice():
    labels = np.array([0] * 1000 + [1] * 37 + [2] * 500)
    partition = make_partition("labels", labels=labels, proportions=[[0.9, 0.05, 0.05], [0.2, 0.4, 0.4]], seed=0)
    taken = used(partition)
    assert len(np.unique(taken)) == len(taken)
    assert len(set(partition.sizes.tolist())) == 1


def test_rounding_of_proportions_leaves_no_client_short():
    partition = make_partition("labels", labels=[0] * 5 + [1] * 5, proportions=[[0.5, 0.5]] * 3)
    assert partition.sizes.tolist() == [2, 2, 2]


@pytest.mark.parametrize("kind", ["iid", "labels", "dirichlet", "quantity"])
def test_same_seed_same_partition_other_seed_another(kind):
    labels = labels_of(500, 2)
    options = {"proportions": SKEW} if kind == "labels" else {"clients": 3}
    once, again, other = (make_partition(kind, labels=labels, seed=seed, **options) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(once, other, strict=True))


def test_partition_does_not_depend_on_the_global_generator():
    labels = labels_of(200, 3)
    np.random.seed(0)
    first = make_partition("dirichlet", labels=labels, clients=4, seed=9)
    np.random.seed(1)
    second = make_partition("dirichlet", labels=labels, clients=4, seed=9)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_partition_bits_of_a_seed_are_those_recorded():
    parts = make_partition("iid", labels=np.zeros(8), clients=2, seed=0)
    assert [part.tolist() for part in parts] == [[0, 3, 5, 7], [1, 2, 4, 6]]


def test_small_beta_skews_more_than_large_beta():
    labels = labels_of(4000, 4)

    def skew(beta):
        partition = make_partition("dirichlet", labels=labels, clients=5, seed=0, beta=beta)
        shares = np.array([np.bincount(labels[part], minlength=4) / len(part) for part in partition])
        return shares.std(axis=0).mean()

    assert skew(0.1) > 2 * skew(10.0)


def test_dirichlet_shares_of_a_class_have_the_mean_and_variance_of_the_distribution():
    clients, beta = 4, 0.7
    labels = np.zeros(10_000, dtype=int)
    shares = np.array(
        [make_partition("dirichlet", labels=labels, clients=clients, beta=beta, seed=s).sizes / 1e4 for s in range(400)]
    )
    total = clients * beta
    variance = (1 / clients) * (1 - 1 / clients) / (total + 1)
    assert shares.mean(axis=0) == pytest.approx(np.full(clients, 1 / clients), abs=4 * np.sqrt(variance / 400))
    assert shares.var() == pytest.approx(variance, rel=0.15)


def test_quantity_follows_fractions_to_one_sample():
    assert make_partition("quantity", labels=np.zeros(1000), fractions=[0.7, 0.2, 0.1]).sizes.tolist() == [
        700,
        200,
        100,
    ]


def test_quantity_follows_the_power_law():
    sizes = make_partition("quantity", labels=np.zeros(11_000), clients=3).sizes
    assert sizes.tolist() == [6000, 3000, 2000]


def test_column_gives_one_client_per_value():
    partition = by_column(["b", "a", "b", "c"])
    assert partition.names == ("a", "b", "c")
    assert [part.tolist() for part in partition] == [[1], [0, 2], [3]]


def test_a_client_s_number_is_one_name_however_it_is_written(caplog):
    assert by_column(["007", "007 ", "12", 7, 7.0]).names == ("12", "7") and not caplog.text
    partition = by_column(["007", 7, 7.0, "x", "7"])
    assert partition.names == ("7", "x") and partition.sizes.tolist() == [4, 1]
    assert "'007' and '7' are one client, '7'" in caplog.text, "two sites would become one without a word"


def test_client_without_data_is_named():
    with pytest.raises(PartitionError, match=r"client 'client-3' .* left with 0 samples"):
        make_partition("iid", labels=np.zeros(3), clients=4)


def test_too_poor_client_of_a_column_is_named():
    with pytest.raises(PartitionError, match=r"client 'tiny' .* 1 samples, fewer than min_samples=2"):
        make_partition("column", labels=np.zeros(4), column=["big", "big", "tiny", "big"], min_samples=2)


def test_dirichlet_that_starves_a_client_gives_up_and_names_the_remedy():
    with pytest.raises(PartitionError, match=r"min_samples=65 after 200 draws; raise beta=0.01"):
        make_partition("dirichlet", labels=labels_of(200, 2), clients=3, beta=0.01, min_samples=65)


def test_dirichlet_draws_again_until_every_client_has_enough():
    sizes = make_partition("dirichlet", labels=labels_of(300, 2), clients=5, beta=0.3, min_samples=20).sizes
    assert sizes.min() >= 20 and sizes.sum() == 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "labels", "proportions": [[0.5, 0.6]]}, "sum to 1"),
        ({"kind": "labels", "proportions": [[0.2, 0.3, 0.5]]}, "shape"),
        ({"kind": "labels"}, "proportions is missing"),
        ({"kind": "labels", "proportions": SKEW, "clients": 5}, "clients.count=5"),
        ({"kind": "dirichlet", "clients": 2, "beta": 0.0}, "beta=0.0"),
        ({"kind": "quantity", "fractions": [0.5, -0.5]}, "fractions"),
        ({"kind": "quantity", "fractions": [0.5, float("nan")]}, "fractions"),
        ({"kind": "column"}, "column is missing"),
        ({"kind": "column", "column": ["a", None] * 10}, "missing in 10 rows"),
        ({"kind": "iid"}, "clients=None"),
        ({"kind": "iid", "clients": 2, "min_samples": 0}, "min_samples=0"),
        ({"kind": "random", "clients": 2}, "kind='random'"),
    ],
)
def test_bad_parameter_is_named(options, message):
    with pytest.raises(PartitionError, match=message):
        make_partition(options.pop("kind"), labels=np.array([0, 1] * 10), **options)


@pytest.mark.parametrize("kind", ["labels", "dirichlet"])
def test_numbers_are_not_taken_for_classes(kind):
    with pytest.raises(PartitionError, match="needs classes, but labels are float64"):
        make_partition(kind, labels=np.linspace(0, 1, 20), clients=1, proportions=[[1.0]])


def test_a_thousand_natural_clients_are_split_as_one_by_one():
    values = np.random.default_rng(0).integers(0, 1000, 20_000)
    partition = by_column(values)
    assert all(
        np.array_equal(part, np.flatnonzero(values == int(name)))
        for name, part in zip(partition.names, partition, strict=True)
    )


def test_description_counts_every_class_of_every_client():
    labels = np.array([0, 0, 1, 1, 1, 0])
    rows = describe(by_quantity(6, [1.0], 0), labels, ["no", "yes"])
    assert rows == [{"client": "client-0", "samples": 6, "share": 1.0, "classes": {"no": 3, "yes": 3}}]
