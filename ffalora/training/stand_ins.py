"""What stands in for frozen layers that were computed once: examples, embeddings and layers of a table of states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.examples import Batch, TokenizedDataset


class CachedExamples:
    """Texts whose token numbers are rows of a table of states; lengths, labels and targets are the texts'.

    Args:
        texts: what the states were computed from; count: how many of them, from the first, are in the table.
        first_row: of the first text's first token; the tokens of all texts follow in their order.
        padding_row: any row: attention masks it.
    """

    def __init__(self, texts: TokenizedDataset, count: int, first_row: int, padding_row: int) -> None:
        self.texts, self.padding_row = texts, padding_row
        self.lengths, self.labels = texts.lengths[:count], texts.labels[:count]
        self.first_rows = first_row + texts.input_ids.offsets[: count + 1]

    def __len__(self) -> int:
        return len(self.lengths)

    def collate(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """As the texts' own, with rows of the table for ``input_ids``: int64 ``[S,T]``."""
        inputs, targets = self.texts.collate(indices)
        real = inputs["attention_mask"].bool()
        first = torch.from_numpy(self.first_rows[np.asarray(indices, dtype=np.int64)])
        rows = first[:, None] + torch.arange(real.shape[1])
        return inputs | {"input_ids": rows.masked_fill(~real, self.padding_row)}, targets


class Rows(nn.Module):
    """In place of embeddings: ``input_ids [S,T]`` are rows of a table ``[rows,D]`` of states."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table, persistent=False)

    def forward(self, input_ids: Tensor, **_: Any) -> Tensor:
        return F.embedding(input_ids, self.table)


class PassOn(nn.Module):
    """In place of a layer whose work is done: gives back the states that it is given, in the form that it did."""

    def __init__(self, in_tuple: bool) -> None:
        super().__init__()
        self.in_tuple = in_tuple

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states,) if self.in_tuple else hidden_states
