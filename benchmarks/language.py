"""Private steps of a small language model on a CPU: its workloads, and the section of ``cpu.py`` that measures them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from minilm import ours_as_chosen
from session import Session, measure_steps
from torch import nn
from workload import RandomTokens, Workload, token_losses

_VOCABULARY = 49152
_PROVIDERS = ["floor", "peft", "peft, a frozen", "opacus hooks, a frozen", "opake, a frozen", "ours"]


def smollm2(lengths: Sequence[int], name: str, small: bool) -> Workload:
    """One batch for a language model of SmolLM2-135M's shape (tiny where small) with random weights and tokens."""
    vocabulary = 200 if small else _VOCABULARY
    sizes = (32, 2, 2, 1, 64) if small else (576, 30, 9, 3, 1536)
    names = "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"

    def build(dtype: torch.dtype, attention: str) -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocabulary, max_position_embeddings=512, tie_word_embeddings=True, use_cache=False,
            attn_implementation=attention, **dict(zip(names, sizes, strict=True)),
        )  # fmt: skip
        return LlamaForCausalLM(config).requires_grad_(False).to(dtype)

    count = len(lengths)
    work = Workload(
        f"{'tiny' if small else 'SmolLM2'} {name} q,v R8", build, "", ("q_proj", "v_proj"),
        RandomTokens(lengths, vocabulary, None), [np.arange(count)], token_losses, torch.device("cpu"),
        attention="eager",
    )  # fmt: skip
    return Workload(**vars(work) | {"dtype": ours_as_chosen(work)["dtype"]})


def measure_language(session: Session) -> None:
    """The same private step for all: texts of 256 tokens, and of unequal length."""
    length = 16 if session.quick else 256
    unequal = np.random.default_rng(0).integers(length // 8, length + 1, 8)
    tokens = int(unequal.sum())
    jobs = [
        (smollm2([length] * 4, f"4x{length}", session.quick), _PROVIDERS),
        (smollm2(unequal.tolist(), f"8 texts, {tokens} tokens", session.quick), _PROVIDERS),
    ]
    measure_steps(session, "language", jobs, 2 if session.quick else 8, 60.0)
