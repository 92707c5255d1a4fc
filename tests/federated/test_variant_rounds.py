"""Adapters other than LoRA in the same rounds: private, in one pass or one after another, evaluated from files."""

import pytest
import torch
from small_runs import PRIVATE

from ffalora.config import ConfigError, from_mapping
from ffalora.federated.experiment import build
from ffalora.federated.simulate import simulate
from ffalora.federated.strategies import STRATEGIES, Answers
from ffalora.runs.bundle import evaluate

METHODS = ["vera", "loha", "lokr", "bottleneck"]


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_clients_of_a_variant_move_and_average_exactly_in_private_rounds(small, tmp_path, method):
    config = small(adapter__method=method, adapter__seed=1, federation__rounds=2, **PRIVATE)
    together = simulate(config, tmp_path / "together", progress=False)
    alone = simulate(
        config.model_copy(update={"federation": config.federation.model_copy(update={"one_pass": "never"})}),
        tmp_path / "alone",
        progress=False,
    )
    assert together.rounds[-1]["metrics"]["loss"] == pytest.approx(alone.rounds[-1]["metrics"]["loss"], rel=1e-4)
    assert evaluate(tmp_path / "together" / "adapter")["loss"] == pytest.approx(
        together.rounds[-1]["metrics"]["loss"], rel=1e-4
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_server_s_average_of_a_variant_has_no_gap(small, method):
    experiment = build(small(adapter__method=method))
    server = experiment.strategy.begin()
    experiment.strategy.load(server, trains=True)
    rows = torch.randn(3, experiment.adapters.layout.width)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    assert experiment.strategy.aggregate(server, Answers([0, 1, 2], rows, weights)) == 0.0
    torch.testing.assert_close(server.row.double(), (weights[:, None] * rows.double()).sum(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_a_variant_that_says_nothing_of_init_can_be_read_again(small, tmp_path, method):
    values = small(adapter__method=method, federation__rounds=1).model_dump(mode="json")
    del values["adapter"]["init"]
    run = simulate(from_mapping(values), tmp_path / "run", progress=False)
    found = evaluate(tmp_path / "run" / "adapter")
    assert found["loss"] == pytest.approx(run.rounds[-1]["metrics"]["loss"], rel=1e-4)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "ffa"])
def test_methods_that_need_factors_which_variants_do_not_have_are_refused_before_training(small, name):
    with pytest.raises(ConfigError, match=rf"adapter\.method='vera' does not go with .*{name}.*can: ffa$"):
        build(small(adapter__method="vera", federation__strategy=name))
