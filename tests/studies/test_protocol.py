"""Protocols: the paper's and the package's differ in how methods are trained, and in nothing that they train on."""

import pytest

from ffalora.config import ConfigError, load_config
from ffalora.config.values import differences
from ffalora.studies.grid import Cell, load_grid
from ffalora.studies.protocol import load_protocol, wider

ABOUT_TRAINING = {"adapter", "model", "optimizer", "privacy"}


def configs(protocol):
    grid = load_grid("privacy", "laptop", "verdict", protocol=protocol)
    return [grid.config(Cell(method, "eps-6", seed, ())) for method in grid.methods for seed in (0, 1)]


def test_the_two_protocols_share_data_clients_rounds_and_budget():
    for user, paper in zip(configs("user"), configs("paper"), strict=True):
        lines = differences(user.model_dump(), paper.model_dump())
        assert {line.partition(".")[0] for line in lines} <= ABOUT_TRAINING and len(lines) > 4
        assert user.privacy.target_epsilon == paper.privacy.target_epsilon
        assert user.optimizer.batch_size == paper.optimizer.batch_size


def test_the_users_protocol_is_the_packages_defaults_but_for_the_schedule():
    usual = load_config()
    for config in configs("user"):
        assert config.optimizer.schedule == "cosine"
        for name in ("head", "init", "dropout", "trained"):
            assert getattr(config.adapter, name) == getattr(usual.adapter, name)
        for name in ("normalize", "name", "head_lr_factor", "a_lr_factor", "momentum"):
            assert getattr(config.optimizer, name) == getattr(usual.optimizer, name)
        assert (config.privacy.head_share, config.privacy.max_grad_norm) == (0.9, 1.0)
        assert (config.model.pooled_layers, config.model.head_start) == (3, "auto")


@pytest.mark.parametrize(("scale", "layers", "norms"), [("laptop", [4, 5], 0), ("paper", None, 3)])
def test_the_papers_protocol_freezes_one_head_and_trains_in_the_papers_units(scale, layers, norms):
    grid = load_grid("privacy", scale, "verdict", protocol="paper")
    configs = [grid.config(Cell("ffa", "eps-6", seed, ())) for seed in (0, 7)]
    for config in configs:
        assert (config.adapter.head, config.adapter.init) == ("frozen", "kaiming")
        assert config.adapter.layers_to_transform == layers and config.adapter.target_modules == ["query", "value"]
        assert not config.optimizer.normalize and config.optimizer.name == "sgd"
    assert {config.model.head_seed for config in configs} == {0}, "the head is the same for all seeds"
    rates = {method: grid.tried((method, "eps-6"))["optimizer.lr"] for method in ("lora", "ffa")}
    assert [10 * rate for rate in rates["lora"]] == pytest.approx(rates["ffa"])
    assert len(grid.tried(("ffa", "eps-6")).get("privacy.max_grad_norm", ())) == norms


def test_a_grid_grows_beyond_a_best_value_at_its_edge_alone():
    assert wider([1, 2, 4], 4) == [1, 2, 4, 8] and wider([1, 3, 9], 1) == pytest.approx([1 / 3, 1, 3, 9], rel=1e-5)
    assert wider([1, 2, 4], 2) == [1, 2, 4] and wider([5], 5) == [5]
    assert wider([0.25, 1], 0.25)[0] == 0.0625


def test_an_unknown_protocol_is_refused_by_name():
    with pytest.raises(ConfigError, match="--protocol 'mine': choose one of paper, user"):
        load_protocol("mine")
