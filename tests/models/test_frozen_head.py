"""A language model's losses and gradients without its logits: those of its logits, and refused where they are not."""

import pytest
import torch
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from ffalora.data.examples import IGNORE_INDEX
from ffalora.data.head_loss import HeadStates
from ffalora.data.tasks import TASKS, causal_losses
from ffalora.models.frozen_head import can_leave_head_out, frozen_head, head_left_out

VOCABULARY = 67
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32,
         "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}  # fmt: skip
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2)),
    "softcapped": lambda: Gemma2ForCausalLM(
        Gemma2Config(final_logit_softcapping=2.0, head_dim=8, layer_types=["full_attention"], **SIZES)
    ),
}
SCALED = {
    "multiplied": lambda: CohereForCausalLM(CohereConfig(logit_scale=0.5, **SIZES)),
    "divided": lambda: GraniteForCausalLM(GraniteConfig(logits_scaling=4.0, **SIZES)),
}


def frozen(make) -> nn.Module:
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.normal_(std=0.5)
    return model


def batch() -> tuple[dict, torch.Tensor]:
    """Three samples, of which one has no target and one is padded."""
    torch.manual_seed(1)
    ids = torch.randint(1, VOCABULARY, (3, 7))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    targets = ids.masked_fill(mask == 0, IGNORE_INDEX)
    targets[:, :2] = IGNORE_INDEX
    targets[2] = IGNORE_INDEX
    return {"input_ids": ids, "attention_mask": mask}, targets


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_are_those_of_the_logits(name: str) -> None:
    model, (inputs, targets) = frozen(MODELS[name]), batch()
    assert can_leave_head_out(model, inputs)
    factors, found = torch.tensor([1.0, -3.0, 2.0]), []
    embedded = model.get_input_embeddings()(inputs["input_ids"])
    for context in (torch.enable_grad(), head_left_out(model)):
        states = embedded.detach().requires_grad_()
        with context:
            output = model(inputs_embeds=states, attention_mask=inputs["attention_mask"])
            losses = causal_losses(output, targets)
        (gradient,) = torch.autograd.grad((losses * factors).sum(), states)
        found.append((losses.detach(), gradient))
    assert isinstance(output.logits, HeadStates) and found[1][0].dtype == torch.float32
    assert found[1][0][2] == 0 and not found[1][1][2].any()
    for plain, apart in zip(*found, strict=True):
        torch.testing.assert_close(apart, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_metrics_are_those_of_the_logits(name: str) -> None:
    model, (inputs, targets), task = frozen(MODELS[name]), batch(), TASKS["causal-lm"]
    with torch.no_grad():
        plain = task.gather(model(**inputs), targets)
        with head_left_out(model):
            apart = task.gather(model(**inputs), targets)
    assert plain.keys() == apart.keys() and plain["tokens"].sum() == 8
    for key, value in plain.items():
        torch.testing.assert_close(apart[key].double(), value.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SCALED)
def test_a_model_that_scales_its_logits_keeps_its_head(name: str) -> None:
    assert not can_leave_head_out(frozen(SCALED[name]), batch()[0])


def test_a_head_that_is_trained_or_adapted_or_compiled_is_kept() -> None:
    model = frozen(MODELS["llama"])
    assert frozen_head(model) is model.lm_head
    model.lm_head.weight.requires_grad_()
    assert frozen_head(model) is None
    model.lm_head = type("Adapted", (nn.Linear,), {})(16, VOCABULARY, bias=False).requires_grad_(False)
    assert frozen_head(model) is None
    assert frozen_head(torch.compile(frozen(MODELS["llama"]))) is None
    assert frozen_head(nn.Linear(2, 2)) is None
    with pytest.raises(ValueError, match="no frozen linear head"), head_left_out(model):
        pass


def test_the_model_is_as_before_after_its_head_was_left_out() -> None:
    model, (inputs, _) = frozen(MODELS["softcapped"]), batch()
    before = model(**inputs).logits
    with pytest.raises(KeyError), head_left_out(model):
        raise KeyError
    assert torch.equal(model(**inputs).logits, before)
    assert model.config.final_logit_softcapping == 2.0 and "forward" not in vars(model.lm_head)


def test_second_derivatives_of_losses_without_logits_are_refused():
    states = torch.randn(2, 3, 4, requires_grad=True)
    sums, _, _ = HeadStates(states, torch.randn(5, 4)).token_losses(torch.tensor([[1, 2, 3], [4, 0, 1]]))
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(sums.sum(), states, create_graph=True)
