"""Batches in which nothing is hidden attend without a mask, also while a pass is recorded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaForSequenceClassification, masking_utils
from transformers.utils import import_utils

from ffalora.models import without_masks

_SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=64)


def _roberta():
    return RobertaForSequenceClassification(RobertaConfig(**_SIZES))


def _llama():
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, use_cache=False, **_SIZES))


@pytest.fixture
def masks(monkeypatch):
    """The masks that torch's attention was given, while transformers believes that a pass is being recorded."""
    monkeypatch.setattr(import_utils, "is_cuda_stream_capturing", lambda: True)
    attend, seen = torch.nn.functional.scaled_dot_product_attention, []

    def noted(query, key, value, attn_mask=None, **options):
        seen.append(attn_mask)
        return attend(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    return seen


@pytest.mark.parametrize("make", [_roberta, _llama])
@torch.no_grad()
def test_recorded_passes_without_padding_attend_without_a_mask(masks, make):
    torch.manual_seed(0)
    model, ids = make().eval(), torch.randint(5, 60, (3, 7))
    masked = model(input_ids=ids).logits
    assert make is _roberta or None not in masks
    masks.clear()
    with without_masks():
        plain = model(input_ids=ids).logits
    assert masks == [None] * _SIZES["num_hidden_layers"]
    assert torch.allclose(plain, masked, atol=1e-5)


def test_after_the_block_and_in_other_threads_transformers_looks_for_itself(masks):
    positions = torch.tensor([[0, 1, 2, 0, 1]])  # two samples in a row
    with pytest.raises(ZeroDivisionError), without_masks():
        assert masking_utils.find_packed_sequence_indices(positions) is None
        assert not masking_utils.is_tracing(positions)
        with ThreadPoolExecutor(1) as other:
            elsewhere = other.submit(masking_utils.find_packed_sequence_indices, positions).result()
        1 / 0  # noqa: B018
    assert elsewhere.tolist() == masking_utils.find_packed_sequence_indices(positions).tolist() == [[0, 0, 0, 1, 1]]
    assert masking_utils.is_tracing(positions), "the fixture says that a pass is being recorded"


def test_models_compile_in_one_graph_after_a_pass_without_masks():
    torch.manual_seed(0)
    model, ids = _roberta().eval(), torch.randint(5, 60, (3, 7))
    with without_masks():
        eager = model(input_ids=ids).logits
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for within in (nullcontext, without_masks):
        with within():
            logits = compiled(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        assert torch.allclose(logits, eager, atol=1e-5)
