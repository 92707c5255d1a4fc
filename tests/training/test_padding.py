"""A sample's gradient does not notice to which length the longest sample of its batch pads it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import ledger, losses, tiny_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ffalora.adapters import AdapterConfig, attach
from ffalora.data.tasks import causal_losses
from ffalora.privacy.noise import SeededNoise
from ffalora.training.gradients import segment_gradients
from ffalora.training.independence import SamplesNotIndependent
from ffalora.training.private_gradient import PrivateGradient
from ffalora.training.probe import Probe


def _batch(*lengths, to=None, left=False, seed=0):
    """Token numbers of samples that begin alike whatever stands beside them."""
    width = to or max(lengths)
    ids, mask = torch.zeros(len(lengths), width).long(), torch.zeros(len(lengths), width).long()
    for row, length in enumerate(lengths):
        place = slice(width - length, width) if left else slice(0, length)
        own = torch.Generator().manual_seed(100 * seed + length)
        ids[row, place], mask[row, place] = torch.randint(1, 60, (length,), generator=own), 1
    return {"input_ids": ids, "attention_mask": mask}


def _answers(inputs):
    return torch.where(inputs["attention_mask"] == 1, inputs["input_ids"], -100)


def _look(model, targets=lambda inputs: torch.zeros(len(inputs["input_ids"])).long(), found=losses):
    """Gives a private probe batches."""
    modules = "all-linear" if isinstance(model, GPT2LMHeadModel) else "auto"
    adapters = attach(model, AdapterConfig(rank=2, target_modules=modules))
    probe = Probe(adapters)
    return lambda inputs: segment_gradients(model, adapters, found, inputs, targets(inputs), probe=probe)


def _llama(**rotary):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, initializer_range=0.3, rope_parameters={"rope_theta": 10000.0} | rotary,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


_GROWING = [
    {"rope_type": "dynamic", "factor": 4.0},
    {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 8,
        "factor": 2.0,
    },
]


@pytest.mark.parametrize("rotary", _GROWING, ids=lambda rotary: rotary["rope_type"])
def test_positions_that_the_longest_sample_decides_are_refused_where_it_would(rotary):
    look = _look(_llama(**rotary), _answers, causal_losses)
    beside, alone = look(_batch(8, 5)).gradients[1].clone(), look(_batch(5)).gradients[0]
    torch.testing.assert_close(beside, alone, rtol=1e-4, atol=1e-6)
    with pytest.raises(SamplesNotIndependent, match=r"more than 8 tokens, and here it has 9.*max_length to at most 8"):
        look(_batch(9, 5))


def test_positions_of_each_sample_alone_may_be_as_long_as_they_like():
    look = _look(_llama(rope_type="linear", factor=4.0), _answers, causal_losses)
    look(_batch(5, 4))
    look(_batch(20, 5))


class _PooledOverPadding(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.bert, self.classifier = model.bert, model.classifier

    def forward(self, input_ids, attention_mask):
        return self.classifier(self.bert(input_ids, attention_mask).last_hidden_state.mean(1))


def _of_tensors(output, targets):
    return F.cross_entropy(output, targets, reduction="none")


def _over_the_width(output, targets):
    sums = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), reduction="none")
    return sums.view(len(targets), -1).mean(1)


def _gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=60, n_positions=40, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3)
    ).eval()


_IDS = ["pooled", "averaged", "shifted"]


def _counting_padding():
    torch.manual_seed(0)
    yield _look(_PooledOverPadding(tiny_model()), found=_of_tensors), False
    yield _look(_llama(), _answers, _over_the_width), False
    yield _look(_gpt2(), _answers, causal_losses), True


@pytest.mark.parametrize("look,left", list(_counting_padding()), ids=_IDS)
def test_what_counts_padding_is_refused_once_batches_of_two_lengths_show_it(look, left):
    look(_batch(6, 4, left=left))
    with pytest.raises(SamplesNotIndependent, match=r"in a batch of 9 tokens and .* in one of 6: .* counts padding"):
        look(_batch(9, 5, left=left))


def _with_a_head_of_zeros(layer):
    torch.manual_seed(0)
    model = _PooledOverPadding(tiny_model())
    nn.init.zeros_(model.classifier.weight)
    if layer != "classifier":  # a name by which nobody knows a head
        model.forward = lambda input_ids, attention_mask: getattr(model, layer)(
            model.bert(input_ids, attention_mask).last_hidden_state.mean(1)
        )
        setattr(model, layer, model.classifier)
        del model.classifier
    return model, getattr(model, layer)


def test_what_counts_padding_is_refused_although_the_head_starts_at_zero():
    model, head = _with_a_head_of_zeros("classifier")
    look = _look(model, found=_of_tensors)
    look(_batch(6, 4))
    assert not head.weight.any()
    with pytest.raises(SamplesNotIndependent, match="counts padding"):
        look(_batch(9, 5))
    assert not head.weight.any()


def test_a_head_of_zeros_that_nobody_knows_is_looked_at_until_it_has_moved():
    model, head = _with_a_head_of_zeros("answers")
    look = _look(model, found=_of_tensors)
    look(_batch(6, 4))
    look(_batch(9, 5))
    nn.init.normal_(head.weight)
    with pytest.raises(SamplesNotIndependent, match="counts padding"):
        look(_batch(12, 5))


@pytest.mark.parametrize("look,left", list(_counting_padding()), ids=_IDS)
def test_padding_to_one_length_is_nobody_else_s_doing(look, left):
    look(_batch(6, 4, to=9, left=left))
    look(_batch(9, 5, left=left))


@pytest.mark.parametrize("left", [False, True])
def test_models_and_losses_that_leave_padding_out_raise_no_alarm(left):
    for look in (_look(_llama(), _answers, causal_losses), _look(tiny_model())):
        look(_batch(6, 4, left=left))
        look(_batch(9, 5, left=left))


def test_a_loop_of_ones_own_is_told_too():
    model = _llama()
    adapters = attach(model, AdapterConfig(rank=2))
    private = PrivateGradient(
        model, adapters, _over_the_width, ledger(0, 8, 2), max_grad_norm=1.0, noise=SeededNoise.from_seed(0)
    )
    for step, lengths in enumerate([(6, 4), (9, 5)]):
        inputs = _batch(*lengths)
        batch = np.array([2 * step, 2 * step + 1]), inputs, _answers(inputs)
        if step:
            with pytest.raises(SamplesNotIndependent, match="counts padding"):
                private.step(step, [batch])
        else:
            private.step(step, [batch])


class _Rounds(_PooledOverPadding):
    """Outputs that are rounded otherwise where a batch is longer."""

    def forward(self, input_ids, attention_mask):
        logits = self.classifier(self.bert(input_ids, attention_mask).last_hidden_state[:, 0])
        return SimpleNamespace(logits=logits, rounding=1e-7 * input_ids.shape[1])


def test_the_rounding_of_a_sample_that_is_learned_already_is_no_padding():
    """Its loss is a small difference of larger outputs, and rounded as they are."""

    def learned(output, targets):
        return 1e-5 * F.cross_entropy(output.logits, targets, reduction="none") + output.rounding

    look = _look(_Rounds(tiny_model()), found=learned)
    look(_batch(5, 4))
    look(_batch(12, 5))
