"""The counted costs of a local step: what is adapted and trained more must count more."""

import pytest
from small_runs import PRIVATE, save_model, save_texts, small_config

from ffalora.studies.costs import step_costs


@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    """By strategy and adapted layers, on one tiny model in float32."""
    folder = tmp_path_factory.mktemp("costs")
    model, texts = save_model(folder / "model"), save_texts(folder / "texts.csv")
    return {
        (strategy, targets): step_costs(
            small_config(
                model, texts, federation__strategy=strategy, adapter__target_modules=targets, model__dtype="float32",
                adapter__exclude_modules=".*pooler.*",
                **PRIVATE,
            )
        )
        for strategy in ("ffa", "lora")
        for targets in ("auto", "all-linear")
    }  # fmt: skip


@pytest.mark.parametrize("name", ["flops_per_sample", "saved_bytes", "step_bytes"])
def test_costs_grow_with_what_is_adapted_and_trained(costs, name):
    for strategy in ("ffa", "lora"):
        assert costs[strategy, "all-linear"][name] > costs[strategy, "auto"][name]
    for targets in ("auto", "all-linear"):
        assert costs["lora", targets][name] > costs["ffa", targets][name]


def test_products_of_adapted_layers_are_counted(costs):
    """At rank 8 or less, adapters add to a layer's operations; they never replace them."""
    assert costs["ffa", "all-linear"]["flops_per_sample"] < 2 * costs["ffa", "auto"]["flops_per_sample"]
