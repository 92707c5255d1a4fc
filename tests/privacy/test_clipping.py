"""Thresholds that are refused, and thresholds that follow a quantile at a price that is counted."""

import json
import math

import pytest
import torch

from ffalora.privacy.accountants import epsilon
from ffalora.privacy.clipping import AdaptiveQuantileClipping, check_thresholds, per_layer_thresholds, sensitivity
from ffalora.trainer import PrivacyArguments


@pytest.mark.parametrize("norm", [math.nan, math.inf, 0.0, -1.0])
def test_a_norm_that_would_clip_nothing_is_refused_wherever_noise_is_scaled_by_it(norm):
    for given in (lambda: sensitivity(norm, 100), lambda: PrivacyArguments(target_epsilon=3.0, max_grad_norm=norm)):
        with pytest.raises(ValueError, match="max_grad_norm must be positive and finite"):
            given()


@pytest.mark.parametrize("limit", [1e-6, 0.3, 1.0, 7.0, 1e6])
@pytest.mark.parametrize("weights", [[1.0], [1.0] * 7, [3.0, 1e-3, 500.0], list(range(1, 200))])
def test_per_layer_thresholds_compose_to_c(limit, weights):
    thresholds = per_layer_thresholds(limit, weights)
    square = math.fsum(float(t) ** 2 for t in thresholds)
    assert limit**2 * (1 - 1e-12) <= square <= limit**2
    assert torch.allclose(thresholds**2 / thresholds[0] ** 2, torch.tensor(weights, dtype=torch.float64) / weights[0])


@pytest.mark.parametrize(
    ("thresholds", "named"),
    [
        ([1.0, 1.0], "sum to 2, but max_grad_norm=1.0 needs 1; multiply each by 0.707107"),
        ([0.8, 0.6001], "max_grad_norm=1.0"),
        ([0.5, 0.5], "multiply each by 1.41421"),
        ([1.0, 0.0], "positive"),
        ([math.nan], "positive"),
        ([], "positive"),
    ],
)
def test_thresholds_that_do_not_compose_to_c_are_refused(thresholds, named):
    with pytest.raises(ValueError, match=named):
        check_thresholds(thresholds, 1.0)


def test_bad_weights_are_refused():
    with pytest.raises(ValueError, match="weights"):
        per_layer_thresholds(1.0, [1.0, -1.0])
    with pytest.raises(ValueError, match="max_grad_norm"):
        per_layer_thresholds(0.0, [1.0])


def adaptive(**changes) -> AdaptiveQuantileClipping:
    return AdaptiveQuantileClipping(
        **{"noise_multiplier": 1.0, "expected_rows": 100.0, "max_grad_norm": 1.0, **changes}
    )


def test_noise_of_the_count_is_paid_for():
    """Two Gaussian releases, of sensitivity 1 and 1/2, must compose to what the accountant is told."""
    policy = adaptive(noise_multiplier=1.3, bit_noise=2.0)
    together = policy.sum_noise_multiplier**-2 + (0.5 / policy.bit_noise) ** 2
    assert together == pytest.approx(1.3**-2, rel=1e-12)
    assert policy.sum_noise_multiplier > policy.noise_multiplier
    # And by the accountant, at q = 1: k releases of each are k releases of the pair.
    separate = (together * 5) ** -0.5
    assert epsilon(1.3, 1.0, 5, 1e-5, "rdp") == pytest.approx(epsilon(separate, 1.0, 1, 1e-5, "rdp"), rel=1e-9)
    with pytest.raises(ValueError, match="bit_noise"):
        adaptive(noise_multiplier=1.3, bit_noise=0.65)


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("start", [1e-3, 50.0])
def test_clipping_norm_finds_the_quantile(quantile, start):
    generator = torch.Generator().manual_seed(3)
    policy = adaptive(max_grad_norm=start, quantile=quantile)
    reached = []
    for step in range(300):
        size = int(torch.poisson(torch.tensor(100.0), generator=generator))
        norms = torch.empty(size, dtype=torch.float64).log_normal_(0.0, 1.0, generator=generator)
        policy.update(norms, float(torch.randn(1, generator=generator)))
        if step >= 150:
            reached.append(math.log(policy.max_grad_norm))
    truth = math.sqrt(2) * torch.erfinv(torch.tensor(2 * quantile - 1.0)).item()
    # 150 correlated steps; the count's noise (σ_b = 5 of 100 rows) and sampling leave about 0.1 in log C: five of
    # those.
    assert abs(sum(reached) / len(reached) - truth) < 0.5


def test_one_row_moves_the_count_by_one_half_at_most():
    norms = torch.tensor([0.1, 5.0, 0.2], dtype=torch.float64)
    logs = []
    for rows in (norms, norms[1:], norms[:1], torch.cat([norms, torch.tensor([math.nan], dtype=torch.float64)])):
        policy = adaptive()
        policy.update(rows, 0.0)
        logs.append(-math.log(policy.max_grad_norm) / policy.learning_rate * policy.expected_rows)
    for other in logs[1:2] + logs[3:]:
        assert abs(logs[0] - other) == pytest.approx(0.5)


def test_clipping_norm_stays_within_its_limits_and_bears_an_empty_batch():
    policy = adaptive(lowest=0.5, highest=2.0)
    for _ in range(100):
        policy.update(torch.zeros(100, dtype=torch.float64), 0.0)
    assert policy.max_grad_norm == 0.5
    for _ in range(100):
        policy.update(torch.full((100,), math.inf, dtype=torch.float64), 0.0)
    assert policy.max_grad_norm == 2.0
    assert adaptive().update(torch.zeros(0, dtype=torch.float64), 0.0) == 1.0


def test_adaptive_clipping_survives_a_resume():
    policy = adaptive()
    policy.update(torch.ones(80, dtype=torch.float64) * 0.5, 0.3)
    again = AdaptiveQuantileClipping.from_state_dict(json.loads(json.dumps(policy.state_dict())))
    assert again == policy
    with pytest.raises(ValueError, match="wrong entries"):
        AdaptiveQuantileClipping.from_state_dict({**policy.state_dict(), "surprise": 1.0})


@pytest.mark.parametrize(
    "change", [{"quantile": 1.0}, {"expected_rows": 0.0}, {"max_grad_norm": 1e9}, {"learning_rate": -1.0}]
)
def test_bad_adaptive_settings_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        adaptive(**change)
