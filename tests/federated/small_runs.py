"""A tiny model and a small data set on disk, and configurations that use them: what the federated tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from ffalora.config import Config, from_mapping, merge
from ffalora.federated.flower.policy import SitePolicy

WORDS = [f"word{i}" for i in range(40)]
#: What a simulated site allows, whose data came with the configuration.
SIMULATED = SitePolicy(unit="none", noise="seeded", max_epsilon=None, max_delta=0.5, reports=["samples", "epsilon"])


def save_model(folder: Path, hidden: int = 16, layers: int = 2) -> Path:
    """A BERT encoder of random weights with a tokenizer of whole words."""
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=2 * hidden, max_position_embeddings=32, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def save_texts(path: Path, rows: int = 160) -> Path:
    """Sentences of random words; the class is whether words of the first half are in the majority."""
    rng = np.random.default_rng(0)
    lines = ["text,label"]
    for _ in range(rows):
        drawn = rng.integers(0, len(WORDS), rng.integers(3, 9))
        lines.append(f"{' '.join(WORDS[i] for i in drawn)},{int((drawn < len(WORDS) // 2).mean() > 0.5)}")
    path.write_text("\n".join(lines) + "\n")
    return path


def save_apart(folder: Path, rows: int = 160, evaluated: int = 40) -> dict[str, object]:
    """A folder with rows to train on and others to evaluate on, and the configuration's keys that take it so."""
    folder.mkdir(parents=True, exist_ok=True)
    save_texts(folder / "train.csv", rows)
    save_texts(folder / "test.csv", evaluated)
    return {"data__name": str(folder), "data__validation_fraction": 0.0, "data__test_fraction": 0.0}


def small_config(model: Path, data: Path, **changes) -> Config:
    """Three clients, three rounds of two steps; ``changes`` are dotted keys with ``__`` for the dot."""
    base = {
        "model": {"name": str(model), "dtype": "float32", "head_scale": 10.0},
        "data": {"name": str(data), "max_length": 16},
        "adapter": {"rank": 2, "alpha": 4.0, "target_modules": ["query", "value"], "init": "kaiming", "head": "frozen"},
        "clients": {"count": 3},
        "federation": {"rounds": 3, "local_steps": 2},
        "optimizer": {"normalize": False, "lr": 0.5, "batch_size": 8},
        "baselines": False,
    }
    return from_mapping(merge(base, {key.replace("__", "."): value for key, value in changes.items()}))


PRIVATE = {
    "privacy__unit": "sample",
    "privacy__noise_multiplier": 1.0,
    "privacy__accountant": "rdp",
    "privacy__max_grad_norm": 0.5,
}
CLIENT_LEVEL = {
    "privacy__unit": "client",
    "privacy__noise_multiplier": 1.0,
    "privacy__accountant": "rdp",
    "privacy__max_grad_norm": 0.5,
    "federation__weighting": "uniform",
    "federation__participation": 0.5,
}
