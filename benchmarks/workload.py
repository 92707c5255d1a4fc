"""What every provider is given: the same model, the same samples, the same logical batches, the same starting
factors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Build = Callable[[torch.dtype, str], nn.Module]


@dataclass(frozen=True)
class Workload:
    """A training job.

    Attributes:
        name: of the case in tables.
        build: ``build(dtype of the frozen base, attention)`` returns the model, every time with the same weights.
        root: submodule that PEFT wraps, '' for the whole model.
        targets: suffixes of the adapted linear layers.
        data: samples by index (``lengths``, ``collate``).
        draws: the logical batches, indices into the data.
        losses: ``losses(output, targets)`` gives ``[S]``.
        rank, max_grad_norm, noise_multiplier, lr: settings of all providers.
        expected: divisor of the clipped sum.
    """

    name: str
    build: Build
    root: str
    targets: tuple[str, ...]
    data: Any
    draws: Sequence[np.ndarray]
    losses: Callable[[Any, Tensor], Tensor]
    device: torch.device
    rank: int = 8
    max_grad_norm: float = 0.1
    noise_multiplier: float = 1.0
    lr: float = 1e-3
    dtype: torch.dtype = torch.float32
    attention: str = "sdpa"
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def expected(self) -> float:
        """Mean size of the logical batches."""
        return float(np.mean([len(draw) for draw in self.draws]))

    def batch(self, number: int) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs and targets of a logical batch, padded to its longest sample, on the device."""
        inputs, targets = self.data.collate(self.draws[number % len(self.draws)])
        return {name: t.to(self.device) for name, t in inputs.items()}, targets.to(self.device)


class RandomTokens:
    """Samples of random tokens with a class each; ``lengths`` may differ."""

    def __init__(self, lengths: Sequence[int], vocabulary: int, classes: int | None, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.rows = [rng.integers(5, vocabulary, n) for n in lengths]
        self._classes = rng.integers(0, classes, len(lengths)) if classes else None

    def collate(self, indices: np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
        """Padded token ids and mask; targets are the classes, or the ids where there are none (a language model)."""
        width = int(self.lengths[indices].max(initial=1))
        ids = torch.ones(len(indices), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(indices):
            ids[i, : self.lengths[row]] = torch.from_numpy(self.rows[row])
            mask[i, : self.lengths[row]] = 1
        targets = (
            ids.masked_fill(mask == 0, -100) if self._classes is None else torch.from_numpy(self._classes[indices])
        )
        return {"input_ids": ids, "attention_mask": mask}, targets


def class_losses(output: Any, targets: Tensor) -> Tensor:
    """Cross entropy of each sample."""
    return F.cross_entropy(output.logits.float(), targets, reduction="none")


def token_losses(output: Any, targets: Tensor) -> Tensor:
    """Mean cross entropy of each sample's own next tokens."""
    logits, wanted = output.logits[:, :-1].float(), targets[:, 1:]
    loss = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), wanted.reshape(-1), reduction="none", ignore_index=-100
    )
    counts = (wanted != -100).sum(1).clamp(min=1)
    return loss.view(wanted.shape).sum(1) / counts


def starting_factors(name: str, n: int, k: int, r: int) -> tuple[Tensor, Tensor]:
    """``a [R,K]`` and a ``b [N,R]`` that is not zero, a function of the layer's name: all providers start alike."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "little")
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(r, k, generator=generator) / k**0.5, 0.05 * torch.randn(n, r, generator=generator)


def _initialised_on(device: torch.device) -> torch.device:
    """Where random weights are drawn: on a GPU itself, which takes seconds off a large model; else on the CPU."""
    return device if device.type == "cuda" else torch.device("cpu")


def roberta(
    device: torch.device,
    hidden: int = 1024,
    layers: int = 24,
    heads: int = 16,
    vocabulary: int = 50265,
    samples: int = 64,
    batch: int = 32,
    length: int = 128,
    rank: int = 8,
    dtype: torch.dtype = torch.float32,
    targets: Sequence[str] = (),
) -> Workload:
    """A classifier of RoBERTa's shape (large unless told otherwise) with random weights and random tokens."""
    config = dict(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=length + 4,
        type_vocab_size=1,
        num_labels=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=1,
    )

    def build(dtype: torch.dtype, attention: str) -> nn.Module:
        from transformers import RobertaConfig, RobertaForSequenceClassification

        torch.manual_seed(0)
        with _initialised_on(device):
            made = RobertaForSequenceClassification(RobertaConfig(**config, attn_implementation=attention))
        return made.requires_grad_(False).to(device=device, dtype=dtype)

    return Workload(
        f"roberta {layers}x{hidden} B{batch} T{length} R{rank} {short(dtype)}",
        build, "roberta", tuple(targets or ("query", "value")),
        RandomTokens([length] * samples, vocabulary, 2),
        np.split(np.arange(samples), range(batch, samples, batch)), class_losses, device, rank=rank, dtype=dtype,
    )  # fmt: skip


def ragged(work: Workload, draws: int = 12, samples: int = 512, expected: int = 32) -> Workload:
    """The classifier on texts of many lengths, 8 tokens to the longest that it had, in Poisson batches."""
    rng, longest = np.random.default_rng(0), int(work.data.lengths.max())
    lengths = np.clip(rng.lognormal(np.log(longest / 2), 0.5, samples).astype(int), min(8, longest), longest)
    vocabulary = max(int(row.max()) for row in work.data.rows) + 1
    batches = [np.flatnonzero(rng.random(samples) < expected / samples) for _ in range(draws)]
    return replace(
        work,
        name=f"{work.name.split(' B')[0]} Poisson {expected}, up to {longest} tokens R{work.rank} {short(work.dtype)}",
        data=RandomTokens(lengths, vocabulary, 2),
        draws=batches,
    )


def llama(
    device: torch.device,
    hidden: int = 2048,
    layers: int = 16,
    heads: int = 32,
    vocabulary: int = 32000,
    samples: int = 8,
    batch: int = 4,
    length: int = 512,
    rank: int = 8,
    dtype: torch.dtype = torch.float32,
) -> Workload:
    """A language model of Llama-1B's shape (unless told otherwise) with random weights and random tokens."""
    config = dict(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        intermediate_size=4 * hidden,
        max_position_embeddings=length,
        tie_word_embeddings=False,
    )

    def build(dtype: torch.dtype, attention: str) -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        with _initialised_on(device):
            made = LlamaForCausalLM(LlamaConfig(**config, attn_implementation=attention))
        made.config.use_cache = False
        return made.requires_grad_(False).to(device=device, dtype=dtype)

    return Workload(
        f"llama {layers}x{hidden} B{batch} T{length} R{rank} {short(dtype)}", build, "", ("q_proj", "v_proj"),
        RandomTokens([length] * samples, vocabulary, None),
        np.split(np.arange(samples), range(batch, samples, batch)), token_losses, device, rank=rank, dtype=dtype,
    )  # fmt: skip


def short(dtype: torch.dtype) -> str:
    """A number format's name without torch's own, e.g. 'bfloat16'."""
    return str(dtype).removeprefix("torch.")


def logits_of(output: Any) -> SimpleNamespace:
    """An output with nothing but logits (for functional transforms, which take no dataclass)."""
    return SimpleNamespace(logits=output.logits if hasattr(output, "logits") else output)
