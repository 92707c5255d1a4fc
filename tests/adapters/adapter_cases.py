"""Tiny models and the reference that every adapter test compares with: one sample at a time, plain autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from ffalora.adapters import AdapterConfig, Adapters, TrainingPass, attach

VOCABULARY = 60


def tiny_bert(
    seed: int = 0, layers: int = 2, labels: int = 3, attention: str = "eager"
) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, num_labels=labels, attn_implementation=attention,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def tiny_albert(seed: int = 0) -> AlbertForSequenceClassification:
    torch.manual_seed(seed)
    config = AlbertConfig(
        vocab_size=VOCABULARY, embedding_size=8, hidden_size=16, num_hidden_layers=3, num_hidden_groups=1,
        num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=32, num_labels=3, classifier_dropout_prob=0.0,
    )  # fmt: skip
    return AlbertForSequenceClassification(config).eval()


def tiny_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=2, n_head=2)).eval()


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def text_batch(samples: int = 5, length: int = 7, labels: int = 3, seed: int = 1) -> dict[str, Tensor]:
    """A padded batch of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (samples, length), generator=generator)
    lengths = torch.randint(2, length + 1, (samples,), generator=generator)
    lengths[0] = length
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "labels": torch.randint(0, labels, (samples,), generator=generator),
    }


def sample_losses(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """One classification loss a sample, ``[S]``."""
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    return torch.nn.functional.cross_entropy(model(**inputs).logits.float(), batch["labels"], reduction="none")


def adapted(model, seed: int = 2, b_std: float = 0.3, **config) -> Adapters:
    """Adapters whose ``b`` is not zero, so that ``dh`` and the gradient of ``a`` are not zero either."""
    adapters = attach(model, AdapterConfig(**{"rank": 3, "alpha": 6.0, **config}))
    randomise(adapters, seed, b_std)
    return adapters


def randomise(adapters: Adapters, seed: int = 2, b_std: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapters.layers.values():
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator) * b_std)


def poisoned_arena(adapters: Adapters, segments: int, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """An arena whose trained columns hold NaN (zero where a layer accumulates), and NaN squares."""
    arena = torch.zeros(segments, adapters.layout.width, dtype=dtype)
    for place in adapters.layout.places:
        if not adapters.layout.layers[place.layer].shared_use:
            arena[:, place.start : place.start + place.size] = float("nan")
    return arena, torch.full((segments, max(adapters.layout.slots, 1)), float("nan"), dtype=torch.float64)


def run_pass(
    adapters: Adapters,
    losses,
    samples: int,
    state: Tensor | None = None,
    client: list[int] | None = None,
    sample_offsets: list[int] | None = None,
    forward=None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass: ``losses()`` gives per-sample losses. Returns losses, arena and squares."""
    offsets = (
        torch.arange(samples + 1, dtype=torch.int32) if sample_offsets is None else torch.tensor(sample_offsets).int()
    )
    segments = len(offsets) - 1
    state = adapters.state()[None] if state is None else state
    arena, squares = poisoned_arena(adapters, segments, state.dtype)
    owner = torch.zeros(segments, dtype=torch.int32) if client is None else torch.tensor(client, dtype=torch.int32)
    longest = int(offsets.diff().max()) if segments else 0
    current = TrainingPass(state, arena, squares, owner, offsets, samples, longest)
    with adapters.training_pass(current):
        values = losses()
        values.sum().backward()
    return values.detach(), arena, squares


def one_at_a_time(adapters: Adapters, batch: dict[str, Tensor], losses=sample_losses) -> tuple[Tensor, Tensor]:
    """Losses ``[S]`` and gradient rows ``[S,P]`` from a loop over single samples with the layers' own parameters."""
    rows, values = [], []
    layout = adapters.layout
    parameters = [layout.parameter(place) for place in layout.places]
    for i in range(len(next(iter(batch.values())))):
        value = losses(adapters.model, {k: v[i : i + 1] for k, v in batch.items()}).sum()
        row = torch.zeros(layout.width, dtype=parameters[0].dtype)
        grads = torch.autograd.grad(value, parameters, allow_unused=True)
        for place, grad in zip(layout.places, grads, strict=True):
            if grad is not None:
                row[place.start : place.start + place.size] = grad.reshape(-1)
        rows.append(row)
        values.append(value.detach())
    return torch.stack(values), torch.stack(rows)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """RMS(error) / RMS(reference)."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).square().mean().sqrt() / expected.square().mean().sqrt())
