"""A small random model and data set, so that the examples run without a network. Use your own in their place."""

from __future__ import annotations

import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, PreTrainedModel

VOCABULARY = 64


def classifier() -> PreTrainedModel:
    """A BERT of random weights with two classes."""
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
            max_position_embeddings=32, num_labels=2, initializer_range=0.2,
        )
    )  # fmt: skip


def language_model() -> PreTrainedModel:
    """A Llama of random weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=128, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip


def sentences(rows: int, seed: int = 0) -> Dataset:
    """Token ids of random sentences; the class says whether high or low words are in the majority."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for _ in range(rows):
        length = int(torch.randint(5, 13, (1,), generator=generator))
        label = int(torch.randint(2, (1,), generator=generator))
        ids = torch.randint(4 + 30 * label, 34 + 30 * label, (length,), generator=generator)
        examples.append({"input_ids": ids.tolist(), "label": label})
    return Dataset.from_list(examples)


def pad(features: list[dict]) -> dict[str, torch.Tensor]:
    """A collator that needs no tokenizer."""
    longest = max(len(f["input_ids"]) for f in features)
    ids = [f["input_ids"] + [0] * (longest - len(f["input_ids"])) for f in features]
    mask = [[1] * len(f["input_ids"]) + [0] * (longest - len(f["input_ids"])) for f in features]
    batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    if "label" in features[0]:
        batch["labels"] = torch.tensor([f["label"] for f in features])
    return batch
