"""A head that reads several layers: which, what it takes off, and what stands for layers that are computed no more."""

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification, BertModel

from ffalora.adapters import attach
from ffalora.config import AdapterConfig
from ffalora.models import KeptMeans, MeanPooledClassifier

LENGTHS = (5, 3, 7)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=6, num_attention_heads=2, intermediate_size=32)
    return BertModel(config).eval()


def batch():
    mask = torch.tensor([[i < length for i in range(max(LENGTHS))] for length in LENGTHS]).long()
    generator = torch.Generator().manual_seed(1)
    return {"input_ids": torch.randint(1, 50, mask.shape, generator=generator) * mask, "attention_mask": mask}


@pytest.mark.parametrize("count,read", [(1, [6]), (2, [3, 6]), (3, [2, 4, 6]), (9, [1, 2, 3, 4, 5, 6])])
def test_layers_are_read_at_even_distances_up_to_the_last(encoder, count, read):
    model = MeanPooledClassifier(encoder, 2, 0.3, 3.0, 0, pooled_layers=count)
    assert model.read == read and model.classifier.in_features == 16 * len(read)


@torch.no_grad()
def test_the_head_reads_means_of_real_tokens_that_are_centred_and_normalised_layer_by_layer(encoder):
    model = MeanPooledClassifier(encoder, 2, 0.3, 3.0, 0, pooled_layers=3)
    model.center.copy_(torch.randn(3, 16))
    states = encoder(**batch(), output_hidden_states=True).hidden_states
    parts = []
    for number, layer in enumerate((2, 4, 6)):
        means = torch.stack([row[:length].mean(0) for row, length in zip(states[layer], LENGTHS, strict=True)])
        parts.append(F.normalize(means - model.center[number], dim=1))
    wanted = model.classifier(torch.cat(parts, 1) * (3.0 / 3**0.5))
    assert (model(**batch()).logits - wanted).abs().max() < 1e-5


@torch.no_grad()
def test_kept_means_stand_for_the_layers_that_made_them_whatever_token_names_the_sample(encoder):
    model = MeanPooledClassifier(encoder, 2, 0.3, 3.0, 0, pooled_layers=3)
    means = model.means(**batch())
    first_rows = torch.tensor([0, *LENGTHS]).cumsum(0)[:-1]
    kept = KeptMeans(means[:, :2], first_rows)
    rows = first_rows[:, None] + torch.arange(3)
    for column in rows.T:
        assert torch.equal(kept.of({"input_ids": column[:, None]}), means[:, :2])
    packed = {"input_ids": torch.arange(sum(LENGTHS))[None], "cu_seq_lens_q": torch.tensor([0, *LENGTHS]).cumsum(0)}
    assert torch.equal(kept.of(packed), means[:, :2])


@pytest.mark.parametrize("wanted", ["all-linear", ["query", "dense"], r".*\.dense"])
def test_a_pooler_whose_output_is_thrown_away_is_not_adapted(encoder, wanted):
    assert any(name == "pooler.dense" for name, _ in encoder.named_modules())
    model = MeanPooledClassifier(encoder, 2, 0.05, 10.0, seed=0)
    adapters = attach(model, AdapterConfig(target_modules=wanted))
    assert adapters.layers and not any("pooler" in name for name in adapters.layers)
    assert sum("layer.5" in name for name in adapters.layers) >= 2
    whole = attach(BertForSequenceClassification(encoder.config), AdapterConfig(target_modules=wanted))
    assert any("pooler" in name for name in whole.layers), "a head that reads the pooler has it adapted"


def test_adapters_on_nothing_but_an_unread_pooler_are_refused(encoder):
    model = MeanPooledClassifier(encoder, 2, 0.05, 10.0, seed=0)
    with pytest.raises(ValueError, match="matches no linear layer that is read and not excluded"):
        attach(model, AdapterConfig(target_modules=["pooler.dense"]))
