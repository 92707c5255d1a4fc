"""The engine's correlated noise: drawn, shaped and remembered for each client, whoever shares its pass."""

import numpy as np
import pytest
import torch
from scipy.linalg import toeplitz
from tiny import ledger, losses, tiny_engine

import ffalora.training.step as step_module
from ffalora.privacy.accounting import PrivacyBudgetSpent
from ffalora.privacy.factors import banded_factor, blt_factor
from ffalora.privacy.noise import SecureNoise
from ffalora.privacy.sampling import SystemDraw
from ffalora.training.participant import Participant
from ffalora.training.private_gradient import PrivateGradient
from ffalora.training.step import LogicalStep
from ffalora_kernels.reference import gaussian_ref

STEPS = 7
FACTORS = {"banded-mf": banded_factor(STEPS, 3), "blt": blt_factor(STEPS, 3)}
SIGMA, CLIP, SAMPLES = 1.5, 0.5, 12


def clients(mechanism: str, count: int = 1) -> list[Participant]:
    terms = dict(sigma=SIGMA, max_steps=STEPS, correlation=FACTORS[mechanism])
    return [
        Participant(i, np.arange(SAMPLES * i, SAMPLES * (i + 1)), ledger(i, SAMPLES, 4, **terms)) for i in range(count)
    ]


@pytest.fixture
def noise_of_steps(monkeypatch):
    """What each step adds to the clipped sums, ``[T][C,P]``, in units of σ·C."""
    found, sums = [], []
    real_sums, real_step = LogicalStep.passes, step_module.privatize_step_

    def passes(self, *arguments):
        answer = real_sums(self, *arguments)
        sums.append(self.total.clone())
        return answer

    def step(state, total, **options):
        assert (options["noise_std"] < 0).all(), "the step would add noise of its own"
        found.append((total - sums[-1]) / (SIGMA * CLIP))
        real_step(state, total, **options)

    monkeypatch.setattr(LogicalStep, "passes", passes)
    monkeypatch.setattr(step_module, "privatize_step_", step)
    return found


def columns(adapters) -> torch.Tensor:
    index = adapters.layout.parameter_index()
    return torch.arange(adapters.layout.width) if index is None else index.long()


@pytest.mark.parametrize("mechanism", FACTORS)
def test_factor_times_the_noise_of_the_steps_is_independent_noise_of_the_sensitivity(mechanism, noise_of_steps):
    engine, adapters = tiny_engine(seed=4, privacy={"mechanism": mechanism})
    engine.train(clients(mechanism, 2), adapters.state()[None].repeat(2, 1), steps=STEPS)
    correlation, real = FACTORS[mechanism], columns(adapters) >= 0
    c = torch.from_numpy(np.tril(toeplitz(correlation.coefficients())))
    for client in range(2):
        noise = torch.stack([each[client] for each in noise_of_steps])[:, real] / correlation.sensitivity
        drawn = [gaussian_ref(engine.noise.key, client, step, 0, columns(adapters)[real]) for step in range(STEPS)]
        torch.testing.assert_close(c @ noise, torch.stack(drawn), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mechanism", FACTORS)
def test_secure_noise_has_the_error_of_the_formula_in_prefix_sums(mechanism, noise_of_steps):
    engine, adapters = tiny_engine(privacy={"mechanism": mechanism})
    engine.noise, engine.draw = SecureNoise(), SystemDraw(bytes(32))
    engine.train(clients(mechanism), adapters.state()[None].clone(), steps=STEPS)
    sums = torch.stack([each[0] for each in noise_of_steps])[:, columns(adapters) >= 0].cumsum(0)
    expected = FACTORS[mechanism].prefix_error()
    assert float(sums.square().mean().sqrt()) == pytest.approx(expected, rel=5 * (2 * sums.shape[1]) ** -0.5)


@pytest.mark.parametrize("mechanism", FACTORS)
def test_one_pass_over_a_cohort_gives_what_one_client_after_another_gives(mechanism):
    states = []
    for groups in ([slice(0, 3)], [slice(i, i + 1) for i in range(3)]):
        engine, adapters = tiny_engine(privacy={"mechanism": mechanism})
        state, cohort = adapters.state()[None].repeat(3, 1), clients(mechanism, 3)
        for rows in groups:
            part = state[rows].clone()
            engine.train(cohort[rows], part, steps=STEPS)
            state[rows] = part
        states.append(state)
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mechanism", FACTORS)
def test_noise_goes_on_from_one_call_to_the_next(mechanism):
    states = []
    for cut in ([STEPS], [3, 1, 3]):
        engine, adapters = tiny_engine(privacy={"mechanism": mechanism})
        state, cohort = adapters.state()[None].clone(), clients(mechanism)
        for steps in cut:
            engine.train(cohort, state, steps=steps)
        states.append(state)
    assert torch.equal(*states)


@pytest.mark.parametrize("mechanism", FACTORS)
def test_no_record_takes_part_twice_within_a_cycle(mechanism):
    engine, _ = tiny_engine(privacy={"mechanism": mechanism})
    (client,) = clients(mechanism)
    drawn = []
    for client.steps_taken in range(STEPS):
        drawn.append(set(engine.sample(client).tolist()))
    for step in range(STEPS - 2):
        assert not (drawn[step] & drawn[step + 1] or drawn[step] & drawn[step + 2])
    assert set().union(*drawn) == set(range(SAMPLES))


def test_a_loop_of_one_s_own_refuses_a_ledger_that_counts_correlated_noise():
    engine, adapters = tiny_engine()
    (client,) = clients("blt")
    with pytest.raises(ValueError, match="counts noise that is correlated over 7 steps"):
        PrivateGradient(engine.model, adapters, losses, client.ledger, CLIP, SecureNoise())


def test_seeded_noise_whose_past_is_gone_is_refused():
    engine, adapters = tiny_engine(privacy={"mechanism": "blt"})
    (client,) = clients("blt")
    engine.train([client], adapters.state()[None].clone(), steps=2)
    client.correlated = None
    with pytest.raises(ValueError, match="the noise that its next one depends on is not there"):
        engine.train([client], adapters.state()[None].clone(), steps=1)


def test_secure_noise_of_a_client_that_was_set_back_begins_anew():
    engine, adapters = tiny_engine(privacy={"mechanism": "banded-mf"})
    engine.noise, engine.draw = SecureNoise(), SystemDraw(bytes(32))
    (client,) = clients("banded-mf")
    engine.train([client], adapters.state()[None].clone(), steps=2)
    before, client.steps_taken = client.correlated, 1
    engine.train([client], adapters.state()[None].clone(), steps=1)
    assert client.correlated is not before and client.correlated.step == client.steps_taken == 2
    assert client.ledger.steps_taken == 4


def test_secure_noise_whose_past_is_gone_begins_anew_and_pays_for_it():
    engine, adapters = tiny_engine(privacy={"mechanism": "banded-mf"})
    engine.noise, engine.draw = SecureNoise(), SystemDraw(bytes(32))
    (client,) = clients("banded-mf")
    engine.train([client], adapters.state()[None].clone(), steps=2)
    client.correlated = None
    engine.train([client], adapters.state()[None].clone(), steps=1)
    assert client.ledger.steps_taken == 4 and client.ledger.history[-1].steps == 2
    client.correlated = None
    engine.train([client], adapters.state()[None].clone(), steps=1)
    assert client.ledger.history[-1].steps == 3
    with pytest.raises(PrivacyBudgetSpent):
        engine.train([client], adapters.state()[None].clone(), steps=1)
