"""Rates in units that mean the same, and the rate that noise alone decides."""

from __future__ import annotations

import pytest
import torch
from tiny import participants, tiny_engine, tiny_model

from ffalora.adapters import AdapterConfig, attach
from ffalora.config import ConfigError, OptimizerConfig
from ffalora.training.optim import Moments
from ffalora.training.rates import (
    LANGUAGE_SIGNAL,
    PATH,
    auto_rates,
    column_units,
    given_rate,
    head_rate,
    language_rate,
    noise_variance,
)
from ffalora.training.step import LogicalStep

FACTORS = [1.0] * 50


def _moved(clip: float, normalize: bool, lr: float) -> torch.Tensor:
    engine, adapters = tiny_engine(
        optimizer={"lr": lr, "normalize": normalize, "batch_size": 40}, privacy={"max_grad_norm": clip}
    )
    state = adapters.state()[None].clone()
    before = state.clone()
    engine.train(participants(1, batch=40, sigma=0.5), state, 1)
    return state - before


def test_a_normalised_step_moves_as_far_whatever_the_clipping_norm_is():
    # far below every gradient's norm, all samples are clipped: the direction is the same
    small, large = _moved(1e-7, True, 1.0), _moved(4e-7, True, 1.0)
    torch.testing.assert_close(small, large, rtol=2e-3, atol=2e-5)


def test_steps_are_the_papers_without_normalisation():
    # units are those of the clipping norm and of s·κ: s = 2 (alpha 8, rank 4), κ = 1/√3 on average
    plain = _moved(1e-7, False, 1e6)
    _, adapters = tiny_engine()
    units = column_units(adapters, OptimizerConfig(), participants(1))
    expected = plain / (1e6 * 1e-7) * units.float()
    torch.testing.assert_close(_moved(1e-7, True, 1.0), expected, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize(("alpha", "rank"), [(8, 8), (2, 8), (32, 4)])
def test_units_are_one_over_the_scale_of_an_orthonormal_adapter(alpha, rank):
    config = AdapterConfig(rank=rank, alpha=alpha, init="orthonormal", trained="both")
    adapters = attach(tiny_model(), config)
    units = column_units(adapters, OptimizerConfig(a_lr_factor=0.25), participants(1))[0]
    for place in adapters.layout.places:
        found = units[place.start : place.start + place.size]
        wanted = 0.25 if place.tensor == "lora_A" else rank / alpha
        torch.testing.assert_close(found, torch.full_like(found, wanted), rtol=1e-6, atol=0)


def test_units_are_one_without_normalisation():
    engine, adapters = tiny_engine(optimizer={"lr": 0.25, "normalize": False})
    state = adapters.state().repeat(2, 1)
    moments = Moments.zeros(engine.optimizer, *state.shape)
    step = LogicalStep(engine, participants(2), state, None, 0.0, moments, None)
    assert step.units is None and step.lr.tolist() == [0.25, 0.25]


def test_the_auto_rates_fall_with_noise_and_the_adapters_is_capped():
    optimizer = OptimizerConfig()
    rates = [auto_rates(optimizer, v, 384, 3.0, 10_000, FACTORS) for v in (1e-9, 1e-6, 1e-4, 1e-2)]
    for each in zip(*rates, strict=True):
        assert list(each) == sorted(each, reverse=True) and each[-1] < each[0] / 100
    assert rates[0][0] == pytest.approx(PATH / 50, rel=0.01)


def test_the_rate_of_a_language_model_falls_with_noise_from_the_farthest_path_and_by_number_with_adamw():
    rates = [language_rate(OptimizerConfig(), v, 10_000, FACTORS) for v in (None, 1e-9, 1e-4, 1e-2)]
    assert rates == sorted(rates, reverse=True) and rates[3] < rates[0] / 5
    assert rates[0] == PATH / 50 and rates[1] == pytest.approx(PATH / 50, rel=1e-3)
    for numbers in (1_000, 100_000):
        ratio = 1e-4 * numbers / 50 / LANGUAGE_SIGNAL**2  # of squared lengths: noise of the mean step, and signal
        assert language_rate(OptimizerConfig(), 1e-4, numbers, FACTORS) == pytest.approx(PATH / 50 / (1 + ratio))
    by_number = [language_rate(OptimizerConfig(name="adamw"), v, 10_000, FACTORS) for v in (None, 1e-4)]
    assert by_number == pytest.approx([rates[0] / 100, rates[2] / 100])


def test_adapters_of_more_numbers_take_smaller_steps_and_the_head_the_same():
    few, many = (auto_rates(OptimizerConfig(), 1e-5, 384, 3.0, numbers, FACTORS) for numbers in (1_000, 100_000))
    assert many[0] < few[0] / 5 and many[1] == few[1]


def test_a_head_moves_at_its_own_rate_beside_the_adapters():
    cohort = participants(2)
    cohort[0].lr, cohort[0].head_lr = 0.5, 4.0
    adapters = attach(tiny_model(), AdapterConfig(init="orthonormal", head="trained"))
    units = column_units(adapters, OptimizerConfig(lr=1.0, head_lr_factor=3.0), cohort)
    places = [place for place in adapters.layout.places if place.layer in adapters.heads]
    assert places
    for place in places:
        assert units[:, place.start : place.start + place.size].unique(dim=1).tolist() == [[8.0], [3.0]]


def test_noise_of_all_steps_moves_a_head_by_what_was_allowed():
    variance, width = 1e-8, 16
    lr = head_rate(variance, width, FACTORS)
    assert lr * (variance * sum(f**2 for f in FACTORS)) ** 0.5 == pytest.approx(1.0, rel=1e-3)


def test_the_noise_of_an_average_is_that_of_its_weighted_clients():
    ledgers = [p.ledger for p in participants(2, sigma=3.0)]
    assert noise_variance(ledgers, [0.5, 0.5]) == pytest.approx(2 * (0.5 * 3.0 / 8) ** 2)


def test_auto_is_refused_where_nobody_decided_it():
    with pytest.raises(ConfigError, match=r"optimizer\.lr='auto'"):
        given_rate(OptimizerConfig())
