"""The average over rounds: what is evaluated and saved, while training goes on from the last round."""

import pytest
import torch
from safetensors.torch import load_file
from small_runs import PRIVATE

import ffalora.federated.simulate as module
from ffalora.config import ConfigError
from ffalora.federated.experiment import build
from ffalora.federated.simulate import run_round, simulate
from ffalora.federated.strategies import STRATEGIES
from ffalora.federated.strategies.wire import AVERAGE

ROUNDS = {"federation__rounds": 4, "federation__local_steps": 1}


def _rows(config):
    """What each round of a run ended with, and the server's state after the last."""
    experiment = build(config)
    server, rows = experiment.strategy.begin(), []
    for _ in range(config.federation.rounds):
        run_round(experiment, server)
        rows.append(server.row.double())
    return experiment, server, rows


@pytest.mark.parametrize("decay,weights", [(1.0, [1, 1, 1]), (0.5, [1, 2, 4])])
def test_the_average_is_that_of_the_last_rounds_and_training_never_sees_it(small, decay, weights):
    experiment, server, rows = _rows(
        small(federation__average_from=0.25, federation__average_decay=decay, **ROUNDS, **PRIVATE)
    )
    wanted = sum(w * row for w, row in zip(weights, rows[1:], strict=True)) / sum(weights)
    assert torch.allclose(server.tensors[AVERAGE], wanted, rtol=0, atol=1e-12)
    assert torch.equal(server.row, _rows(small(**ROUNDS, **PRIVATE))[1].row)
    ((evaluated, _),) = experiment.strategy.views(server)
    assert torch.equal(evaluated, server.tensors[AVERAGE])


def test_the_average_of_rows_is_the_average_of_products_where_a_is_fixed(small):
    experiment, server, rows = _rows(small(federation__average_from=0.0, **ROUNDS))
    products = []
    for row in rows:
        experiment.strategy.load(server, row)
        products.append([layer.delta().detach().clone() for layer in experiment.adapters.layers.values()])
    experiment.strategy.export(server)
    for layer, *each in zip(experiment.adapters.layers.values(), *products, strict=True):
        assert torch.allclose(layer.delta(), sum(each) / len(each), rtol=0, atol=1e-6)


def test_fedsvd_begins_its_average_anew_where_it_renews_a(small):
    _, server, rows = _rows(
        small(federation__strategy="fedsvd", federation__refactor_every=3, federation__average_from=0.0, **ROUNDS)
    )
    assert torch.allclose(server.tensors[AVERAGE], (rows[2] + rows[3]) / 2, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("every", "averaged"), [(1, 2), (2, 3), (4, 4)])
def test_fedsvd_keeps_its_average_where_a_renewal_would_follow_the_last_round(small, every, averaged):
    _, server, rows = _rows(
        small(federation__strategy="fedsvd", federation__refactor_every=every, federation__average_from=0.0, **ROUNDS)
    )
    wanted = sum(rows[-averaged:]) / averaged
    assert torch.allclose(server.tensors[AVERAGE], wanted, rtol=0, atol=1e-12)


def test_a_resumed_run_saves_the_same_average_and_evaluates_what_it_saves(small, tmp_path, monkeypatch):
    config = small(federation__average_from=0.0, **ROUNDS, **PRIVATE)
    whole = simulate(config, tmp_path / "whole", progress=False)
    real, done = module.run_round, []

    def stops(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "run_round", stops)
        simulate(config, tmp_path / "cut", progress=False)
    cut = simulate(config, tmp_path / "cut", resume=True, progress=False)
    first, second = (load_file(tmp_path / run / "adapter/adapter_model.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert whole.rounds[-1]["metrics"] == cut.rounds[-1]["metrics"]
    experiment, server, _ = _rows(config)
    assert module.evaluate_views(experiment, server) == pytest.approx(whole.rounds[-1]["metrics"])


def test_methods_whose_columns_change_their_meaning_each_round_refuse_to_average(small):
    able = [name for name, strategy in STRATEGIES.items() if strategy.averages]
    assert able == ["lora", "ffa", "fedsvd", "fedsb", "lalora", "prism"]
    with pytest.raises(ConfigError, match=r"average_from=0\.5.*rolora.*can: lora, ffa, fedsvd, fedsb, lalora, prism$"):
        build(small(federation__strategy="rolora", federation__average_from=0.5))
