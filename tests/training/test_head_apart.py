"""Private gradients of language models without logits: those of the logits, per sample, whatever trains around it."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ffalora.adapters import AdapterConfig, attach
from ffalora.data.examples import IGNORE_INDEX
from ffalora.data.head_loss import HeadStates
from ffalora.data.tasks import causal_losses
from ffalora.training import probe as probes
from ffalora.training.gradients import segment_gradients
from ffalora.training.probe import Probe


def language_model(trained: str = "b", tied: bool = True, dtype: torch.dtype = torch.float32, **changes):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=71, hidden_size=16, num_hidden_layers=2, intermediate_size=24, num_attention_heads=2,
        tie_word_embeddings=tied, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype).eval()
    torch.nn.init.normal_(model.lm_head.weight, std=0.4)
    adapters = attach(model, AdapterConfig(rank=2, trained=trained, **changes))
    with torch.no_grad():
        for layer in adapters.layers.values():
            layer.lora_B.normal_(std=0.1)
    return model, adapters


def batch():
    ids = torch.randint(1, 71, (4, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[2, 6:] = 0
    targets = ids.masked_fill(mask == 0, IGNORE_INDEX)
    for row in range(4):
        targets[row, : 2 * row + 1] = IGNORE_INDEX
    return {"input_ids": ids, "attention_mask": mask}, targets


def gradients(apart: bool, monkeypatch, packed: bool = False, checkpointed: bool = False, **model):
    """Rows of the arena and losses; ``apart`` False keeps the logits. Rows equal ordinary autograd's, each sample alone
    and padded: the probe compares.
    """
    kinds = []

    def losses(outputs, targets):
        kinds.append(type(outputs.logits))
        return causal_losses(outputs, targets)

    with monkeypatch.context() as patch:
        patch.setattr(probes, "causal_losses", losses)
        if not apart:
            patch.setattr(probes, "can_leave_head_out", lambda *_: False)
        lm, adapters = language_model(**model)
        if checkpointed:
            lm.train().gradient_checkpointing_enable({"use_reentrant": False})
        probe = Probe(adapters, recomputes=True, packed=packed)
        found = segment_gradients(lm, adapters, losses, *batch(), probe=probe, packed=packed)
    assert probe.head_apart == apart and (HeadStates in kinds) == apart
    return found.gradients.clone(), found.losses


@pytest.mark.parametrize("trained", ["b", "both"])
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_samples_are_those_of_the_logits(trained: str, tied: bool, monkeypatch) -> None:
    apart, whole = (gradients(choice, monkeypatch, trained=trained, tied=tied) for choice in (True, False))
    for found, expected in zip(apart, whole, strict=True):
        assert expected.abs().max() > 1e-3
        assert (found - expected).square().mean().sqrt() <= 1e-5 * expected.square().mean().sqrt()


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("checkpointed", [True, False])
def test_gradients_of_samples_laid_end_to_end_are_those_of_padded_ones(apart, checkpointed, monkeypatch) -> None:
    packed = gradients(apart, monkeypatch, packed=True, checkpointed=checkpointed)
    padded = gradients(False, monkeypatch)
    for found, expected in zip(packed, padded, strict=True):
        assert (found - expected).square().mean().sqrt() <= 1e-5 * expected.square().mean().sqrt()


def test_gradients_of_a_bfloat16_model_are_as_near_to_float32_as_those_of_its_logits(monkeypatch) -> None:
    exact = gradients(False, monkeypatch)[0]
    apart, whole = (gradients(choice, monkeypatch, dtype=torch.bfloat16)[0] for choice in (True, False))
    size = exact.square().mean().sqrt()
    errors = [(found - exact).square().mean().sqrt() / size for found in (apart, whole)]
    assert errors[0] <= 1.1 * errors[1]


def test_an_adapted_head_is_computed_as_it_is() -> None:
    model, adapters = language_model(tied=False, target_modules=["q_proj", "lm_head"])
    probe = Probe(adapters, recomputes=True)
    segment_gradients(model, adapters, causal_losses, *batch(), probe=probe)
    assert not probe.head_apart


def test_losses_of_the_users_own_are_given_logits() -> None:
    model, adapters = language_model()
    probe = Probe(adapters)

    def losses(outputs, targets):
        assert isinstance(outputs.logits, torch.Tensor)
        return causal_losses(outputs, targets)

    segment_gradients(model, adapters, losses, *batch(), probe=probe)
    assert not probe.head_apart
