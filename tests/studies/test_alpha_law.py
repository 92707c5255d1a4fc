"""alpha is no hyper-parameter of its own: scale ×k with lr/k² and C·k is the same run, bit for bit where k = 2.

Each case trains privately through the engine, with clipping that bites and noise, twice: as it is and rescaled. With k
= 2 every number of the second run is the first one's times a power of two, so that not even rounding differs. What each
rule says and why is in docs/theory.md, section 4.
"""

import inspect
from functools import partial

import pytest
import torch
from tiny import losses, participants, tiny_data, tiny_model

from ffalora.adapters import AdapterConfig, attach
from ffalora.config import OptimizerConfig, PrivacyConfig
from ffalora.privacy.noise import SeededNoise
from ffalora.privacy.sampling import SeededDraw
from ffalora.training import gradients
from ffalora.training.engine import Engine
from ffalora.training.optim import Moments

ALPHA, C, LR, STEPS = 8.0, 0.05, 4.0, 3
ADAM_LR, EPS = 0.05, 1e-3
CLIENTS = 2


def trained(alpha, optimizer, max_grad_norm, mu=0.0, clipping="flat", merge=False, clients=CLIENTS, sigma=0.5):
    """``ΔW`` of every layer and client, float32, and the share of gradients that were clipped in the last step."""
    model = tiny_model()
    adapters = attach(model, AdapterConfig(rank=4, alpha=alpha, target_modules="all-linear"))
    engine = Engine(
        model=model,
        adapters=adapters,
        data=tiny_data(),
        losses=losses,
        optimizer=OptimizerConfig(batch_size=8, normalize=False, **optimizer),
        privacy=PrivacyConfig(unit="sample", noise_multiplier=sigma, max_grad_norm=max_grad_norm, clipping=clipping),
        noise=SeededNoise.from_seed(1),
        draw=SeededDraw(1),
        merge_weights=merge,
    )
    state = adapters.state().expand(clients, -1).clone()
    moments = Moments.zeros(engine.optimizer, clients, state.shape[1])
    cohort = participants(clients, sigma=sigma)
    clipped = 0.0
    for _ in range(2):  # the second call pulls towards where the first one ended
        anchor = state.clone() if mu else None
        clipped = engine.train(cohort, state, STEPS, anchor=anchor, mu=mu, moments=moments).numbers()["clipped"]
    deltas = {}
    for name, layer in adapters.layers.items():
        start = layer.places["lora_B"]
        b = state[:, start : start + layer.lora_B.numel()].view(clients, *layer.lora_B.shape)
        deltas[name] = layer.scale * (b @ layer.lora_A.detach())
    assert any(float(delta.abs().max()) > 1e-3 for delta in deltas.values())
    return deltas, clipped


def same_bits(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def distance(one, other):
    wanted = torch.cat([one[name].flatten() for name in one]).double()
    got = torch.cat([other[name].flatten() for name in one]).double()
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("merge", [False, True], ids=["apart", "merged"])
def test_sgd_with_scale_twice_lr_quarter_and_clipping_norm_twice_is_the_same_run_bit_for_bit(merge):
    clients = 1 if merge else CLIENTS
    plain, clipped = trained(ALPHA, {"lr": LR}, C, merge=merge, clients=clients)
    rescaled, _ = trained(2 * ALPHA, {"lr": LR / 4}, 2 * C, merge=merge, clients=clients)
    assert clipped > 0.5
    assert same_bits(plain, rescaled)


@pytest.mark.parametrize("k", [0.5, 4.0, 1 / 1024])
def test_the_law_holds_bit_for_bit_for_every_power_of_two(k):
    plain, _ = trained(ALPHA, {"lr": LR}, C)
    rescaled, _ = trained(k * ALPHA, {"lr": LR / k**2}, k * C)
    assert same_bits(plain, rescaled)


def test_the_law_holds_to_rounding_where_k_is_no_power_of_two():
    plain, _ = trained(ALPHA, {"lr": LR}, C)
    rescaled, _ = trained(3 * ALPHA, {"lr": LR / 9}, 3 * C)
    assert 0 < distance(plain, rescaled) < 2e-5


@pytest.mark.parametrize(
    "changes",
    [{"lr": LR / 2, "c": 2 * C}, {"lr": LR / 4, "c": C}, {"lr": LR, "c": C}],
    ids=["lr-half", "C-unchanged", "alpha-alone"],
)
def test_any_other_rescaling_is_another_run(changes):
    plain, _ = trained(ALPHA, {"lr": LR}, C)
    other, _ = trained(2 * ALPHA, {"lr": changes["lr"]}, changes["c"])
    assert distance(plain, other) > 0.1


def test_fedprox_needs_mu_times_four_for_the_same_bits():
    plain, _ = trained(ALPHA, {"lr": 0.5}, C, mu=0.2)
    without, _ = trained(ALPHA, {"lr": 0.5}, C)
    rescaled, _ = trained(2 * ALPHA, {"lr": 0.5 / 4}, 2 * C, mu=0.8)
    unscaled, _ = trained(2 * ALPHA, {"lr": 0.5 / 4}, 2 * C, mu=0.2)
    assert same_bits(plain, rescaled)
    assert distance(plain, without) > 1e-2 and distance(plain, unscaled) > 1e-2


def test_momentum_and_weight_decay_keep_the_law_with_decay_times_four():
    plain, _ = trained(ALPHA, {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.1}, C)
    rescaled, _ = trained(2 * ALPHA, {"lr": 0.5 / 4, "momentum": 0.9, "weight_decay": 0.4}, 2 * C)
    unscaled, _ = trained(2 * ALPHA, {"lr": 0.5 / 4, "momentum": 0.9, "weight_decay": 0.1}, 2 * C)
    assert same_bits(plain, rescaled)
    assert distance(plain, unscaled) > 1e-2


@pytest.mark.parametrize("corrected", [False, True], ids=["adam", "adam-bc"])
def test_adam_needs_half_lr_and_twice_eps_for_the_same_bits(corrected):
    terms = {"name": "adamw", "dp_bias_correction": corrected}
    plain, _ = trained(ALPHA, terms | {"lr": ADAM_LR, "eps": EPS}, C)
    rescaled, _ = trained(2 * ALPHA, terms | {"lr": ADAM_LR / 2, "eps": 2 * EPS}, 2 * C)
    sgd_rule, _ = trained(2 * ALPHA, terms | {"lr": ADAM_LR / 4, "eps": 2 * EPS}, 2 * C)
    assert same_bits(plain, rescaled)
    assert distance(plain, sgd_rule) > 0.1


def test_adam_with_decoupled_decay_and_fedprox_keeps_the_law_with_decay_times_two_and_mu_times_four():
    terms = {"name": "adamw", "eps": EPS}
    plain, _ = trained(ALPHA, terms | {"lr": ADAM_LR, "eps": EPS, "weight_decay": 0.5}, C, mu=0.2)
    rescaled, _ = trained(2 * ALPHA, terms | {"lr": ADAM_LR / 2, "eps": 2 * EPS, "weight_decay": 1.0}, 2 * C, mu=0.8)
    assert same_bits(plain, rescaled)


@pytest.mark.parametrize(("c_factor", "lr_factor"), [(1, 2), (2, 4)], ids=["C-kept", "C-twice"])
def test_auto_s_needs_gamma_times_two_for_the_same_bits_and_mu_times_two_or_four(monkeypatch, c_factor, lr_factor):
    plain, _ = trained(ALPHA, {"lr": LR}, C, clipping="automatic", mu=0.02)
    clip = gradients.clip_reduce_
    usual = inspect.signature(clip).parameters["gamma"].default
    monkeypatch.setattr(gradients, "clip_reduce_", partial(clip, gamma=2 * usual))
    mu = 0.02 * 2 * c_factor
    rescaled, _ = trained(2 * ALPHA, {"lr": LR / lr_factor}, c_factor * C, clipping="automatic", mu=mu)
    assert same_bits(plain, rescaled)


def test_auto_s_with_gamma_left_alone_keeps_the_law_only_as_far_as_gamma_is_small():
    plain, _ = trained(ALPHA, {"lr": LR}, C, clipping="automatic")
    rescaled, _ = trained(2 * ALPHA, {"lr": LR / 2}, C, clipping="automatic")
    assert 0 < distance(plain, rescaled) < 0.1
