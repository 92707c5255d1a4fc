"""What noise alone makes of averaged factors, from the rows of a run, against the closed form that knows everything."""

import math

import pytest
from fabricated_theory import expected_square_of_discordance

from ffalora.studies.theory import theory_config
from ffalora.studies.theory.noise import averaged_variance, step_variance
from ffalora.studies.theory.noise_alone import discordance_by_noise
from ffalora.training.optim import lr_factor

N, K, RANK, SCALE, STD, BATCH = 12, 9, 3, 0.7, 0.05, 64.0


def variances(config):
    """What each step leaves in a number of a client."""
    total = config.federation.rounds * config.federation.local_steps
    return [
        step_variance(STD, BATCH, config.optimizer.lr * lr_factor(config.optimizer, t, total)) for t in range(total)
    ]


def rows_of(config, weights, rounds, is_lora=True):
    """Rows of a run of ``rounds``, with noise measured after the last."""
    found = [{"round": number, "discordance": {"total": 1.0} if number else None} for number in range(rounds + 1)]
    so_far = variances(config)[: rounds * config.federation.local_steps]
    both, one = averaged_variance([sum(so_far)] * len(weights), weights), max(so_far)
    parts = (SCALE**2 * v**2 * N * RANK * K * is_lora for v in (both, one))
    found[-1]["noise"] = dict(zip(("expected", "one_step"), ({"quadratic": part} for part in parts), strict=True))
    return found


@pytest.fixture(params=["cosine", "linear", "constant"])
def config(request):
    overrides = {"optimizer.schedule": request.param, "optimizer.warmup_steps": 2, "clients.count": 3}
    return theory_config(overrides=overrides).runs()["lora"]


@pytest.mark.parametrize("rounds", [4, 10])
def test_a_round_is_charged_with_the_noise_of_its_steps_and_its_clients(config, rounds):
    found = discordance_by_noise(rows_of(config, [1 / 3] * 3, rounds), config)
    steps = config.federation.local_steps
    assert list(found) == list(range(1, rounds + 1))
    for number, value in found.items():
        variance = sum(variances(config)[(number - 1) * steps : number * steps])
        wanted = expected_square_of_discordance(N, K, RANK, SCALE, variance, [1 / 3] * 3)
        assert value == pytest.approx(math.sqrt(wanted), rel=1e-12)


def test_clients_of_unequal_weight_are_left_out(config):
    assert discordance_by_noise(rows_of(config, [0.34, 0.33, 0.33], 10), config) == {}
    assert discordance_by_noise(rows_of(config, [0.5, 0.5], 10), config) == {}


def test_there_is_no_noise_where_none_was_added_or_a_is_frozen(config):
    without = [{"round": 0, "discordance": None}, {"round": 1, "discordance": {"total": 1.0}, "noise": None}]
    assert discordance_by_noise(without, config) == {}
    assert set(discordance_by_noise(rows_of(config, [1 / 3] * 3, 10, is_lora=False), config).values()) == {0.0}
