"""The law of alpha through whole federated rounds: averages, server optimisers and client-level privacy keep it."""

from functools import partial

import pytest
import torch
from small_runs import CLIENT_LEVEL, PRIVATE, save_model, save_texts, small_config

from ffalora.federated.experiment import build
from ffalora.federated.simulate import run_round


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("law")
    return partial(small_config, save_model(folder / "model"), save_texts(folder / "texts.csv"))


def after_rounds(config):
    """``ΔW`` of every layer after all rounds."""
    experiment = build(config)
    server = experiment.strategy.begin()
    for _ in range(config.federation.rounds):
        run_round(experiment, server)
    experiment.strategy.load(server)
    return {name: layer.delta().detach() for name, layer in experiment.adapters.layers.items()}


def same_bits(one, other):
    assert any(float(delta.abs().max()) > 1e-4 for delta in one.values())
    return all(torch.equal(one[name], other[name]) for name in one)


ADAM = {"federation__server_optimizer": "fedadam", "federation__server_lr": 0.1, "federation__server_tau": 1e-2}
CASES = {
    "no privacy": ({}, {}),
    "private, skewed sizes, cosine": (
        PRIVATE | {"clients__partition": "quantity", "clients__quantities": [0.6, 0.3, 0.1], "clients__count": None,
                   "optimizer__schedule": "cosine"},
        {"privacy__max_grad_norm": 2.0},
    ),
    "private, FedProx": (
        PRIVATE | {"federation__prox_mu": 0.5}, {"privacy__max_grad_norm": 2.0, "federation__prox_mu": 4.0},
    ),
    "private, per-layer clipping": (PRIVATE | {"privacy__clipping": "per-layer"}, {"privacy__max_grad_norm": 2.0}),
    "private, FedAdam": (
        PRIVATE | ADAM,
        {"privacy__max_grad_norm": 2.0, "federation__server_lr": 0.5, "federation__server_tau": 0.5},
    ),
    "client level": (CLIENT_LEVEL | {"privacy__max_grad_norm": 0.05}, {"privacy__max_grad_norm": 0.5}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_federation_with_alpha_twice_and_lr_quarter_is_the_same_bit_for_bit(small, case):
    changes, factors = CASES[case]
    plain = small(**changes)
    values = {"adapter__alpha": 2 * plain.adapter.alpha, "optimizer__lr": plain.optimizer.lr / 4}
    for key, factor in factors.items():
        section, name = key.split("__")
        values[key] = factor * getattr(getattr(plain, section), name)
    assert same_bits(after_rounds(plain), after_rounds(small(**changes | values)))


def test_lora_has_no_such_law(small):
    lora = {"federation__strategy": "lora"}
    plain = after_rounds(small(**lora))
    rescaled = after_rounds(small(**lora, adapter__alpha=8.0, optimizer__lr=0.5 / 4))
    assert not any(torch.allclose(plain[name], rescaled[name], rtol=1e-2, atol=1e-4) for name in plain)
