"""``optimizer.batch_size: auto``: from ε, sizes and steps alone."""

import numpy as np
import pytest

from ffalora.config import load_config
from ffalora.data.users import Owners
from ffalora.federated.batch import MOST_SAMPLES, with_batch
from ffalora.federated.partition import Partition
from ffalora.privacy.batch import ENOUGH, efficiency

PRIVATE = {"privacy.unit": "sample", "privacy.target_epsilon": 3.0}


#: Five rows of each of twenty people.
_TWENTY = Owners.of(np.repeat(np.arange(20), 5))


def _batch(sizes, owners=None, **changes):
    ends = np.cumsum(sizes)
    if owners is None:  # sizes alone count
        indices = tuple(np.broadcast_to(np.int64(0), size) for size in sizes)
    else:
        indices = tuple(np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True))
    partition = Partition(tuple(map(str, range(len(sizes)))), indices, int(ends[-1]), owners=owners)
    config = with_batch(load_config(None, changes), partition)
    assert config.optimizer.batch_size == config.optimizer.batch
    return config.optimizer.batch


def test_the_batch_is_the_smallest_that_spends_the_budget_well():
    found = _batch([400, 1600], **PRIVATE, **{"federation.rounds": 10, "federation.local_steps": 1})
    assert efficiency(1600, 3.0, 1e-5, found, 10) >= ENOUGH > efficiency(1600, 3.0, 1e-5, found / 2, 10)


@pytest.mark.long
def test_the_batch_of_a_private_choice_follows_from_the_noise_of_its_trials():
    steps = {"federation.rounds": 20, "federation.local_steps": 1}
    assert [_batch([1600], **PRIVATE, **steps, **{"privacy.trials": trials}) for trials in (1.0, 10.0)] == [800, 400]
    spent = [efficiency(1600, 3.0, 1e-5, batch, 20, trials=10.0) for batch in (400, 200)]
    assert spent[0] >= ENOUGH > spent[1]


def test_the_batch_is_at_most_what_a_run_of_minutes_allows_and_at_least_the_usual_one():
    assert _batch([10**6], **PRIVATE) == MOST_SAMPLES // 75
    assert _batch([10**6] * 1000, **PRIVATE) == 64
    assert _batch([40], **PRIVATE) == 40


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy.unit": "none"},
        {"privacy.unit": "sample", "privacy.noise_multiplier": 1.0},
        {"privacy.unit": "client", "privacy.target_epsilon": 3.0},
        PRIVATE | {"privacy.sampling": "shuffled"},
    ],
)
def test_the_batch_is_the_usual_one_where_no_budget_is_spent_by_batches(changes):
    assert _batch([5000, 5000], **changes) == 64


def test_the_batch_of_a_secret_size_follows_from_its_bound():
    bound = PRIVATE | {"privacy.public_size_bound": 2000, "federation.weighting": "uniform"}
    assert _batch([300], **bound) == _batch([1900], **bound) == _batch([2000], **PRIVATE)


def test_a_batch_that_was_given_stays():
    assert _batch([5000], **PRIVATE, **{"optimizer.batch_size": 7}) == 7


def test_a_batch_that_no_client_has_is_said_in_what_is_drawn(caplog):
    _batch([40, 60], **{"optimizer.batch_size": 60})
    assert "than any client has" not in caplog.text
    _batch([40, 60], **{"optimizer.batch_size": 61})
    assert "optimizer.batch_size=61 is more samples than any client has" in caplog.text
    users = {"privacy.unit": "user", "privacy.noise_multiplier": 1.0, "data.user": "who"}
    caplog.clear()
    _batch([40, 60], owners=_TWENTY, **users, **{"optimizer.batch_size": 12})
    assert not caplog.text
    _batch([40, 60], owners=_TWENTY, **users, **{"optimizer.batch_size": 13})
    assert "optimizer.batch_size=13 is more users than any client has" in caplog.text
