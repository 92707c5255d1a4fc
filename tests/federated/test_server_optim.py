"""Server optimisers against Reddi et al. (ICLR 2021), Algorithm 2, and Hsu et al. (2019), for one number."""

import pytest
import torch

from ffalora.config import ConfigError, FederationConfig
from ffalora.federated.experiment import build
from ffalora.federated.server_optim import forget_moments, server_step
from ffalora.federated.simulate import run_round
from ffalora.federated.strategies import Answers
from ffalora.federated.strategies.table import table

MOVES = [0.3, -0.2, 0.5, 0.1]


def scalar(name, lr, beta1, beta2, tau):
    x, m, v = 1.0, 0.0, tau**2
    for delta in MOVES:
        if name == "fedavg":
            x += lr * delta
        elif name == "fedavgm":
            m = beta1 * m + delta
            x += lr * m
        else:
            m = beta1 * m + (1 - beta1) * delta
            if name == "fedadagrad":
                v += delta**2
            elif name == "fedadam":
                v = beta2 * v + (1 - beta2) * delta**2
            else:
                v -= (1 - beta2) * delta**2 * (1 if v > delta**2 else -1)
            x += lr * m / (v**0.5 + tau)
    return x


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_a_number_moves_as_the_paper_says(name):
    federation = FederationConfig(
        server_optimizer=name, server_lr=0.1, server_beta1=0.8, server_beta2=0.9, server_tau=0.01
    )
    tensors, x = {}, torch.ones(3)
    for delta in MOVES:
        x = server_step(tensors, x, x + delta, federation, "b")
    torch.testing.assert_close(x, torch.full((3,), scalar(name, 0.1, 0.8, 0.9, 0.01)), rtol=1e-5, atol=0)


def test_the_default_is_the_average_bit_for_bit(small):
    strategy, mean = build(small()).strategy, torch.randn(5)
    answers = Answers([0], torch.randn(1, 5), torch.ones(1), lambda *_: mean)
    assert strategy.average(strategy.begin(), torch.randn(5), answers) is mean


def test_each_factor_has_moments_of_its_own_and_all_can_be_forgotten():
    federation, tensors = FederationConfig(server_optimizer="fedadam"), {"other": torch.ones(1)}
    server_step(tensors, torch.zeros(2), torch.ones(2), federation, "b")
    server_step(tensors, torch.zeros(3), torch.ones(3), federation, "a")
    assert tensors["server.m.b"].shape == (2,) and tensors["server.m.a"].shape == (3,)
    forget_moments(tensors)
    assert set(tensors) == {"other"}


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_a_federation_learns_with_every_server_optimiser(small, name):
    rate = {} if name == "fedavgm" else {"federation__server_lr": 0.01}
    experiment = build(small(federation__server_optimizer=name, **rate))
    server = experiment.strategy.begin()
    losses = [run_round(experiment, server)["metrics"]["loss"] for _ in range(3)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
def test_adaptive_servers_do_not_move_at_the_rate_of_averages(small, name):
    with pytest.raises(ConfigError, match=f"server_lr=1 is the rate of averages; {name} moves every number"):
        build(small(federation__server_optimizer=name))


def test_the_documented_table_of_methods_is_the_one_the_classes_give(pytestconfig):
    page = (pytestconfig.rootpath / "docs" / "strategies.md").read_text()
    assert table() in page, "write ffalora.federated.strategies.table.table() into docs/strategies.md"


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_moments_from_another_device_follow_the_row(name):
    federation = FederationConfig(server_optimizer=name, server_lr=0.1)
    tensors = {}
    server_step(tensors, torch.zeros(3), torch.ones(3), federation, "b")
    start = torch.zeros(3, device="meta")  # stands for any device but the processor
    assert server_step(tensors, start, start + 1, federation, "b").device.type == "meta"
    assert {value.device.type for value in tensors.values()} == {"meta"}
