"""Packed batches: the same numbers as padded ones, with no token computed in vain."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from ffalora.models import MeanPooledClassifier
from ffalora.models.packed_attention import PaddedGroups, packed_attention_forward
from ffalora.models.packing import check_packing, mean_of_samples, pack, packed_attention


def _batch():
    lengths = torch.tensor([5, 9, 1, 3])
    mask = (torch.arange(9) < lengths[:, None]).long()
    return {"input_ids": torch.randint(1, 50, (4, 9)) * mask, "attention_mask": mask}


def _models():
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40)
    yield BertModel(BertConfig(**sizes, attn_implementation="eager")).eval()
    yield LlamaModel(LlamaConfig(**sizes, num_key_value_heads=2, attn_implementation="eager")).eval()


@pytest.mark.parametrize("model", list(_models()), ids=["bidirectional", "causal-grouped"])
def test_packed_states_equal_padded_states(model):
    inputs = _batch()
    padded = model(**inputs).last_hidden_state[inputs["attention_mask"].bool()]
    with packed_attention(model):
        states = model(**pack(inputs)).last_hidden_state
    assert states.shape == (1, 18, 32)
    torch.testing.assert_close(states[0], padded, rtol=1e-4, atol=1e-5)
    assert model.config._attn_implementation == "eager"


def test_second_derivatives_of_attention_in_place_are_refused():
    pytest.importorskip("ffalora_kernels._cpu", reason="the C++ extension is not built here")
    groups = PaddedGroups(torch.tensor([0, 3, 5]).int(), [3, 2])
    q, k, v = (torch.randn(1, 2, 5, 4, requires_grad=True) for _ in range(3))
    out, _ = packed_attention_forward(nn.Module(), q, k, v, None, packed_groups=groups)
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(out.square().sum(), q, create_graph=True)


def test_a_sample_does_not_see_its_neighbours():
    model = next(_models())
    inputs = pack(_batch())
    with packed_attention(model):
        before = model(**inputs).last_hidden_state
        inputs["input_ids"][0, 5:14] = 7
        after = model(**inputs).last_hidden_state
    assert torch.equal(before[0, :5], after[0, :5])
    assert torch.equal(before[0, 14:], after[0, 14:])
    assert not torch.equal(before[0, 5:14], after[0, 5:14])


def test_mean_pooling_of_packed_states_equals_that_of_padded_ones():
    model = MeanPooledClassifier(next(_models()), 3, 0.3, 10.0, seed=0)
    inputs = _batch()
    with packed_attention(model):
        packed = model(**pack(inputs)).logits
    torch.testing.assert_close(packed, model(**inputs).logits, rtol=1e-4, atol=1e-4)


def test_means_are_taken_over_the_tokens_of_each_sample():
    states = torch.arange(6.0).view(1, 6, 1)
    assert mean_of_samples(states, torch.tensor([0, 2, 6], dtype=torch.int32)).flatten().tolist() == [0.5, 3.5]


def test_a_model_without_the_attention_interface_is_refused():
    with pytest.raises(ValueError, match="attention interface"), packed_attention(nn.Linear(2, 2)):
        pass


@pytest.mark.parametrize("kind,fits", [("bert", True), ("roberta", False), ("mpnet", False)])
def test_models_whose_attention_or_positions_do_not_follow_samples_are_refused(kind, fits):
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40)
    model = MeanPooledClassifier(
        AutoModel.from_config(AutoConfig.for_model(kind, **sizes)), 3, 0.3, 10.0, seed=0
    ).eval()
    inputs = _batch()
    if fits:
        assert check_packing(model, inputs)
    else:
        with pytest.raises(ValueError, match=r"model\.packed=true changes this model's outputs"):
            check_packing(model, inputs)


def test_a_sample_longer_than_the_window_of_its_attention_is_refused():
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40)
    model = MistralForCausalLM(MistralConfig(**sizes, num_key_value_heads=2, sliding_window=9)).eval()
    assert check_packing(model, _batch())
    model.config.sliding_window = model.model.layers[0].self_attn.config.sliding_window = 8
    with pytest.raises(ValueError, match=r"sliding_window=8; set model\.packed to false"):
        check_packing(model, _batch())


def test_one_sample_cannot_show_whether_packing_mixes_samples():
    model = MeanPooledClassifier(next(_models()), 3, 0.3, 10.0, seed=0)
    assert not check_packing(model, {name: value[:1] for name, value in _batch().items()})


@pytest.mark.parametrize(
    "make,said",
    [
        (lambda sizes: Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=8)), "softcap"),
        (
            lambda sizes: MptForCausalLM(MptConfig(vocab_size=50, d_model=32, n_layers=1, n_heads=4)),
            "does not take packed",
        ),
    ],
    ids=["scores that are capped", "biases in the mask"],
)
def test_attention_that_packed_batches_cannot_have_is_refused_by_name(make, said):
    """Capped scores differ too little in an untrained model for outputs to show it."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40)
    with pytest.raises(ValueError, match=rf"{said}.*set model\.packed to false"):
        check_packing(make(sizes).eval(), _batch())
