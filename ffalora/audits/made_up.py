"""Models and data that are made up to be audited: canaries of one coordinate each, and a small transformer."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Coordinates(nn.Module):
    """A model in which each sample pushes one coordinate alone, of an adapter or of a trained head."""

    def __init__(self, width: int):
        super().__init__()
        self.body, self.classifier = nn.Linear(width, 1, bias=False), nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.body.weight)
        nn.init.zeros_(self.classifier.weight)

    def forward(self, body: Tensor, head: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.body(body) + self.classifier(head))


class OneHot:
    """Sample i is coordinate i: of the body for the first half, of the head for the second."""

    def __init__(self, width: int):
        self.width, self.lengths = width, np.ones(2 * width, dtype=np.int64)

    def collate(self, indices) -> tuple[dict[str, Tensor], Tensor]:
        both = F.one_hot(torch.as_tensor(np.asarray(indices, dtype=np.int64)), 2 * self.width).float()
        return {"body": both[:, : self.width], "head": both[:, self.width :]}, torch.zeros(len(both))


class Texts:
    """Three texts of six words each."""

    def __init__(self, seed: int):
        self.words = torch.from_numpy(np.random.default_rng([seed, 3]).integers(1, 40, (3, 6)))
        self.targets, self.lengths = torch.tensor([0, 1, 2]), np.full(3, 6, dtype=np.int64)

    def collate(self, indices) -> tuple[dict[str, Tensor], Tensor]:
        rows = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        ids = self.words[rows]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, self.targets[rows]


def small_transformer(seed: int) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertForSequenceClassification(
            BertConfig(
                vocab_size=40,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
                max_position_embeddings=8,
                num_labels=3,
                initializer_range=0.5,
            )
        ).eval()


def cross_entropy(output, targets: Tensor) -> Tensor:
    return 1000.0 * F.cross_entropy(output.logits.float(), targets, reduction="none")
