"""How many numbers travel, counted on published model sizes without their weights."""

import pytest
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

from ffalora.adapters import AdapterConfig, attach
from ffalora.config import Config, from_mapping
from ffalora.federated.strategies import STRATEGIES


def strategy_on_roberta_large(name):
    config = RobertaConfig(
        vocab_size=50265, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
        max_position_embeddings=514, num_labels=3,
    )  # fmt: skip
    with torch.device("meta"):
        model = RobertaForSequenceClassification(config)
    method = STRATEGIES[name]
    adapters = attach(model, AdapterConfig(rank=8, trained=method.trained, target_modules=["query", "value"]))
    return method(adapters, from_mapping({"federation": {"strategy": name}, "adapter": {"rank": 8}}), 3)


@pytest.mark.parametrize("name,numbers", [("ffa", 393_216), ("fedsvd", 393_216), ("lora", 786_432), ("fedsb", 48 * 64)])
def test_roberta_large_with_rank_8_on_query_and_value_sends_what_the_papers_say(name, numbers):
    strategy = strategy_on_roberta_large(name)
    assert strategy.adapters.layout.size == numbers
    assert strategy.wire.bytes_up(strategy.begin()) == 4 * numbers


def test_the_payload_is_the_row_without_padding_and_comes_back_whole(small):
    from ffalora.federated.experiment import build

    for name in STRATEGIES:
        experiment = build(small(federation__strategy=name, adapter__rank=3))
        server = experiment.strategy.begin()
        experiment.strategy.load(server, trains=True)
        layout = experiment.adapters.layout
        row = layout.from_payload(torch.randn(layout.size))
        payload = experiment.strategy.wire.upload(server, row)
        assert 4 * payload.numel() == experiment.strategy.wire.bytes_up(server)
        back = experiment.strategy.wire.received(server, payload)
        assert torch.equal(experiment.strategy.wire.upload(server, back), payload)


def test_the_default_configuration_has_the_method_of_the_package():
    assert Config().federation.strategy == "ffa"
