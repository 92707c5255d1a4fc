"""Privacy of whole clients: every round charged, every update clipped, the expected cohort as divisor, noise once."""

import math

import numpy as np
import pytest
import torch

from ffalora.privacy.accountants import epsilon
from ffalora.privacy.accounting import PrivacyBudgetSpent, PrivacyLedger
from ffalora.privacy.client_level import SERVER_ID, ClientLevel, clip_updates
from ffalora.privacy.clipping import AdaptiveQuantileClipping, roundoff_bound
from ffalora.privacy.noise import SecureNoise, SeededNoise
from ffalora.privacy.sampling import SeededDraw, SystemDraw

P = 24


def mechanism(sigma=1.0, rounds=50, population=40, rate=0.2, limit=0.5, **changes) -> ClientLevel:
    terms = {"sampling": "poisson", "target_epsilon": None, "accountant": "rdp"}
    terms = {name: changes.pop(name, usual) for name, usual in terms.items()}
    ledger = PrivacyLedger(SERVER_ID, population, rate, sigma, 1e-3, rounds, unit="client", **terms)
    return ClientLevel(
        **{"ledger": ledger, "max_update_norm": limit, "noise": SeededNoise(5), "draw": SeededDraw(3), **changes}
    )


def states(count, seed=0, scale=1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = torch.randn(P, generator=generator)
    return state, state + scale * torch.randn(count, P, generator=generator)


def test_rounds_without_a_draw_are_charged():
    server = mechanism(rate=1e-6)
    drawn = [server.open_round(r) for r in range(10)]
    assert sum(map(len, drawn)) == 0
    assert server.ledger.steps_taken == 10
    assert server.ledger.epsilon() == epsilon(1.0, 1e-6, 10, 1e-3, "rdp")


def test_round_beyond_the_last_is_refused():
    server = mechanism(rounds=2)
    server.open_round(0)
    server.open_round(1)
    with pytest.raises(PrivacyBudgetSpent, match="population of clients has taken 2 steps"):
        server.open_round(2)


def test_updates_are_used_only_after_their_charge():
    server = mechanism()
    state, received = states(3)
    with pytest.raises(RuntimeError, match="open_round"):
        server.close_round_(state, received, 0)
    server.open_round(0)
    server.close_round_(state, received, 0)
    with pytest.raises(RuntimeError, match="open_round"):
        server.close_round_(state, received, 0)


def test_sum_is_divided_by_the_expected_cohort():
    server = mechanism(sigma=0.0, limit=100.0)
    state, received = states(3)
    before = state.clone()
    server.open_round(0)
    server.close_round_(state, received, 0)
    expected = before.double() + (received.double() - before.double()).sum(0) / (0.2 * 40)
    assert torch.allclose(state.double(), expected, atol=1e-6)


def test_one_client_moves_the_sum_by_its_norm_at_most():
    state, received = states(12, scale=1e6)
    with_one, _ = clip_updates(received - state, 0.5)
    without, _ = clip_updates((received - state)[1:], 0.5)
    assert float((with_one - without).norm()) <= 0.5 * (1 + roundoff_bound(12))
    server = mechanism(sigma=0.0)
    received[4, 3] = math.nan
    before = state.clone()
    server.open_round(0)
    norms = server.close_round_(state, received, 0)
    finite = norms.isfinite()
    assert len(norms) == 12 and finite.tolist() == [row != 4 for row in range(12)] and bool((norms[finite] > 0.5).all())
    assert bool(state.isfinite().all())
    assert float((state - before).norm()) <= 11 * 0.5 / server.expected_cohort * (1 + 1e-6)


def test_empty_round_adds_noise_of_the_stated_size():
    """Noise of 2000 parameters: its standard deviation is known to 1.6%; the test allows 5 of those."""
    server = mechanism(sigma=1.5, limit=2.0)
    state = torch.zeros(2000)
    server.open_round(0)
    server.close_round_(state, torch.zeros(0, 2000), 0)
    expected = 1.5 * 2.0 * (1 + roundoff_bound(40)) / server.expected_cohort
    assert server.noise_std / server.expected_cohort == pytest.approx(expected, rel=1e-12)
    assert float(state.std()) == pytest.approx(expected, rel=0.08)


def test_every_round_has_noise_of_its_own_that_resume_repeats():
    def noise_of(round_number):
        server = mechanism()
        state = torch.zeros(P)
        server.open_round(round_number)
        server.close_round_(state, torch.zeros(0, P), round_number)
        return state

    assert torch.equal(noise_of(4), noise_of(4))
    assert not torch.equal(noise_of(4), noise_of(5))


def test_padding_receives_no_noise():
    server = mechanism()
    state = torch.zeros(P)
    index = torch.tensor([*range(P - 4), -1, -1, -1, -1], dtype=torch.int32)
    server.open_round(0)
    server.close_round_(state, torch.zeros(0, P), 0, index=index)
    assert bool((state[:-4] != 0).all()) and bool((state[-4:] == 0).all())


@pytest.mark.parametrize("sampling", ["without-replacement", "full"])
def test_clients_not_drawn_by_poisson_get_no_amplification(sampling):
    rate = 1.0 if sampling == "full" else 0.2
    server = mechanism(sigma=8.0, rate=rate, sampling=sampling)
    drawn = server.open_round(0)
    assert len(drawn) == server.expected_cohort == 40 * rate
    assert len(set(drawn.tolist())) == len(drawn)
    assert server.ledger.epsilon() == epsilon(4.0, 1.0, 1, 1e-3, "rdp")
    assert server.ledger.adjacency == "replace one client"


def test_draws_of_clients_have_a_stream_of_their_own_and_differ_by_round():
    server = mechanism()
    draws = [tuple(server.open_round(r)) for r in range(20)]
    assert len(set(draws)) > 15
    assert draws == [tuple(SeededDraw(3)(2**32 - 1, r, 40, 0.2)) for r in range(20)]


def test_adaptive_norm_is_followed_and_accounted():
    server = mechanism(
        sigma=1.0, adaptive=AdaptiveQuantileClipping(noise_multiplier=1.0, expected_rows=8.0, max_grad_norm=0.1)
    )
    assert server.noise_std == pytest.approx(server.adaptive.sum_noise_multiplier * 0.1, rel=1e-9)
    assert server.noise_std > 1.0 * 0.1
    rng = np.random.default_rng(0)
    limits = []
    for round_number in range(50):
        state, _ = states(1)
        count = len(server.open_round(round_number))
        directions = torch.from_numpy(rng.standard_normal((count, P))).float()
        updates = (
            3.0
            * directions
            / directions.norm(dim=1, keepdim=True)
            * torch.from_numpy(rng.uniform(0.5, 1.5, (count, 1)))
        )
        limits.append(server.limit)
        server.close_round_(state, state + updates.float(), round_number)
    assert limits[0] == 0.1 and limits[-1] > 1.0
    assert server.ledger.epsilon() == epsilon(1.0, 0.2, 50, 1e-3, "rdp")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_update_norm": 0.0}, "max_update_norm"),
        ({"sampling": "shuffled"}, "sampling"),
        ({"sampling": "full"}, "sample_rate"),
        ({"noise": SecureNoise()}, "secure draw"),
        ({"adaptive": AdaptiveQuantileClipping(2.0, 8.0, 0.1)}, "noise_multiplier"),
        ({"adaptive": AdaptiveQuantileClipping(1.0, 9.0, 0.1)}, "expected_rows"),
    ],
)
def test_terms_that_do_not_fit_are_refused(change, named):
    with pytest.raises(ValueError, match=named):
        mechanism(**change)


def test_ledger_of_samples_is_refused_for_whole_clients():
    server = mechanism()
    server.ledger.unit = "sample"
    with pytest.raises(ValueError, match="unit='client'"):
        ClientLevel(server.ledger, 1.0, SeededNoise(1), SeededDraw(1))


def test_more_updates_than_clients_are_refused():
    server = mechanism(population=4)
    state, received = states(5)
    server.open_round(0)
    with pytest.raises(ValueError, match="at most 4 clients"):
        server.close_round_(state, received, 0)


def test_secure_round_never_repeats_its_noise():
    pytest.importorskip("ffalora.privacy.secure_noise", reason="the secure generator is not built here")
    results = []
    for _ in range(2):
        server = mechanism(noise=SecureNoise(), draw=SystemDraw())
        state = torch.zeros(2000)
        server.open_round(0)
        server.close_round_(state, torch.zeros(0, 2000), 0)
        results.append(state)
    assert not torch.equal(*results)
    assert float(results[0].std()) == pytest.approx(0.5 / 8, rel=0.08)
