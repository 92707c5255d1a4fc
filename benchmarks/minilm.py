"""The embedded sentence encoder and the movie reviews as workloads, padded equally or as they come."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import nn
from workload import RandomTokens, Workload, class_losses

QUERY_VALUE = ("query", "value")
ALL_LINEAR = ("query", "key", "value", "intermediate.dense", "output.dense")
_VOCABULARY = 30000


def build(dtype: torch.dtype, attention: str) -> nn.Module:
    """MiniLM under the mean-pooled head that runs use; frozen, without dropout, with the same weights every time."""
    from ffalora.config import ModelConfig
    from ffalora.models import load_model

    chosen = ModelConfig(dtype=str(dtype).removeprefix("torch."), attention=attention)
    model = load_model(chosen, "classification", 2, 0, torch.device("cpu")).model
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.requires_grad_(False)


def tiny(dtype: torch.dtype, attention: str) -> nn.Module:
    """A small random encoder of the same architecture, to try the benchmark with."""
    from transformers import BertConfig, BertModel

    from ffalora.models import MeanPooledClassifier, cast_base

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=_VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation=attention,
    )  # fmt: skip
    model = MeanPooledClassifier(BertModel(config), 2, 0.3, 10.0, 0)
    cast_base(model, dtype)
    return model.requires_grad_(False)


def equal_shapes(targets: tuple[str, ...], rank: int, small: bool, samples: int = 32, length: int = 32) -> Workload:
    """One batch of samples of the same length, so that nobody gains by padding less."""
    where = "q,v" if targets == QUERY_VALUE else "all linears"
    return Workload(
        f"{_name(small)} {samples}x{length} {where} R{rank}", tiny if small else build, "encoder", targets,
        RandomTokens([length] * samples, _VOCABULARY, 2), [np.arange(samples)], class_losses, torch.device("cpu"),
        rank=rank, max_grad_norm=1.0, attention="eager",
    )  # fmt: skip


def movie_reviews(small: bool, expected: int = 64, draws: int = 8) -> Workload:
    """The private training job: Poisson batches of the movie reviews; number format and attention as PEFT's users
    get.
    """
    from ffalora.privacy.sampling import poisson_draw

    data = RandomTokens(np.random.default_rng(0).integers(4, 24, 200), _VOCABULARY, 2) if small else reviews()
    expected = 8 if small else expected
    rate = expected / len(data.lengths)
    return Workload(
        f"{_name(small)} movie reviews, Poisson {expected}, q,v R8", tiny if small else build, "encoder", QUERY_VALUE,
        data, [poisson_draw(0, 0, step, len(data.lengths), rate) for step in range(draws)], class_losses,
        torch.device("cpu"), max_grad_norm=1.0,
    )  # fmt: skip


@cache
def reviews():
    """The tokenised training split of the movie reviews."""
    from ffalora.config import Config
    from ffalora.data.tokenize import prepare
    from ffalora.models import load_model
    from ffalora.runs.data import load_run_data

    config = Config()
    tokenizer = load_model(config.model, "classification", 2, 0, torch.device("cpu")).tokenizer
    return prepare(load_run_data(config), "train", tokenizer, max_length=config.data.max_length)


def ours_as_chosen(work: Workload) -> dict:
    """What this package's defaults make of the workload on this processor: number format and attention."""
    from ffalora.models import base_dtype

    return {"dtype": base_dtype("auto", work.device), "attention": "eager"}


def as_users_of_ours(work: Workload) -> Workload:
    """The workload in the number format and with the attention that this package chooses."""
    return replace(work, **ours_as_chosen(work))


def _name(small: bool) -> str:
    return "tiny" if small else "MiniLM"
