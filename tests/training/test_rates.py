"""Rates in units that mean the same, and the rate that noise alone decides."""

from __future__ import annotations

import pytest
import torch
from tiny import losses, participants, tiny_data, tiny_engine, tiny_model

from ffalora.adapters import AdapterConfig, attach
from ffalora.adapters.variants import VARIANTS
from ffalora.config import ConfigError, OptimizerConfig, PrivacyConfig
from ffalora.privacy.noise import SeededNoise
from ffalora.privacy.sampling import SeededDraw
from ffalora.training.engine import Engine
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
    units = column_units(adapters, OptimizerConfig(), participants(1), clipped=True)
    expected = plain / (1e6 * 1e-7) * units.float()
    torch.testing.assert_close(_moved(1e-7, True, 1.0), expected, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize(("alpha", "rank"), [(8, 8), (2, 8), (32, 4)])
def test_units_are_one_over_the_scale_of_an_orthonormal_adapter(alpha, rank):
    config = AdapterConfig(rank=rank, alpha=alpha, init="orthonormal", trained="both")
    adapters = attach(tiny_model(), config)
    for name, clipped, power in (("sgd", True, 1), ("adamw", True, 1), ("adamw", False, 1), ("sgd", False, 2)):
        optimizer = OptimizerConfig(name=name, a_lr_factor=0.25)
        units = column_units(adapters, optimizer, participants(1), clipped)[0]
        for place in adapters.layout.places:
            found = units[place.start : place.start + place.size]
            wanted = 0.25 if place.tensor == "lora_A" else (rank / alpha) ** power
            torch.testing.assert_close(found, torch.full_like(found, wanted), rtol=1e-6, atol=0)


def test_units_are_one_without_normalisation():
    engine, adapters = tiny_engine(optimizer={"lr": 0.25, "normalize": False})
    state = adapters.state().repeat(2, 1)
    moments = Moments.zeros(engine.optimizer, *state.shape)
    step = LogicalStep(engine, participants(2), state, None, 0.0, moments, None)
    assert step.units is None and step.lr.tolist() == [0.25, 0.25]


def test_factors_of_rates_that_are_asked_for_hold_without_normalisation():
    optimizer = {"lr": 0.5, "normalize": False, "a_lr_factor": 0.25, "head_lr_factor": 4.0}
    engine, adapters = tiny_engine("both", "trained", optimizer)
    step = LogicalStep(
        engine,
        participants(1),
        adapters.state()[None],
        None,
        0.0,
        Moments.zeros(engine.optimizer, 1, adapters.layout.width),
        None,
    )
    rates = step.lr[0] * step.units[0]
    for place in adapters.layout.places:
        wanted = 2.0 if place.layer in adapters.heads else 0.125 if place.tensor == "lora_A" else 0.5
        assert rates[place.columns].unique().tolist() == [wanted]


@pytest.mark.parametrize("unit", ["sample", "none"])
@pytest.mark.parametrize(("method", "trained"), [("lora", "b"), ("lora", "both"), *((name, "b") for name in VARIANTS)])
def test_a_step_moves_a_weight_as_far_whatever_alpha_and_of_clipped_samples_whatever_the_method(method, trained, unit):
    moved = [_change(method, trained, alpha, unit) for alpha in (4.0, 40.0)]
    torch.testing.assert_close(moved[0], moved[1], rtol=0.05, atol=0)
    if unit == "sample" and method in ("vera", "loha", "lokr"):
        assert 0.3 < moved[0] / _change("lora", trained, 4.0, unit) < 3


def _change(method, trained, alpha, unit):
    """How far one short step moves the layers' outputs for a fixed input, as a length."""
    model = tiny_model()
    config = AdapterConfig(method=method, trained=trained, rank=4, alpha=alpha, target_modules=["query", "value"])
    adapters, x = attach(model, config), torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    private = {"unit": "none"}
    if unit == "sample":
        private = {"unit": "sample", "noise_multiplier": 0.0, "max_grad_norm": 1e-7, "head_share": None}
    engine = Engine(
        model=model, adapters=adapters, data=tiny_data(), losses=losses, optimizer=OptimizerConfig(lr=1e-3),
        privacy=PrivacyConfig(**private), noise=SeededNoise(0), draw=SeededDraw(0),
    )  # fmt: skip
    state, layers = adapters.state()[None].clone(), list(adapters.layers.values())
    before = [layer(x) for layer in layers]
    engine.train(participants(1, batch=40, sigma=0.0), state, 1)
    adapters.load_state_(state[0])
    with torch.no_grad():
        return torch.cat([layer(x) - y for layer, y in zip(layers, before, strict=True)]).norm()


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
    units = column_units(adapters, OptimizerConfig(lr=1.0, head_lr_factor=3.0), cohort, clipped=True)
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
