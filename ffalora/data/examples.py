"""Examples in memory, ready to be batched: one class per modality, all with the same four members.

``len(examples)``, ``examples.lengths`` (cost of a sample in tokens, int64 [rows]), ``examples.labels`` (for partitions
and metrics) and ``examples.collate(indices) -> (inputs, targets)``: keyword arguments of the model's forward, padded to
the longest of the batch only, and what the task's losses compare its outputs with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

IGNORE_INDEX = -100  # target of a token that no loss counts: padding and prompts

Batch = tuple[dict[str, Tensor], Tensor]


class Examples(Protocol):
    """What training and evaluation need to know of data."""

    lengths: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int: ...

    def collate(self, indices: Sequence[int] | np.ndarray) -> Batch: ...


class Ragged:
    """Rows of different lengths in one flat array: row i is ``flat[offsets[i]:offsets[i + 1]]``."""

    def __init__(self, rows: Sequence[Sequence[int]], dtype: Any = np.int32) -> None:
        self.lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        self.flat = np.empty(int(self.offsets[-1]), dtype=dtype)
        for row, start in zip(rows, self.offsets[:-1], strict=True):
            self.flat[start : start + len(row)] = row

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.flat[self.offsets[row] : self.offsets[row + 1]]

    def padded(self, rows: np.ndarray, value: int) -> tuple[np.ndarray, np.ndarray]:
        """``[len(rows), T]`` int64 filled up with ``value`` on the right, and the mask of what is real (bool)."""
        lengths = self.lengths[rows]
        columns = np.arange(lengths.max(initial=0))
        mask = columns < lengths[:, None]  # [S, T]
        out = np.full(mask.shape, value, dtype=np.int64)
        out[mask] = self.flat[(self.offsets[rows][:, None] + columns)[mask]]
        return out, mask


def fingerprint(examples: Examples, samples: Sequence[int] | np.ndarray) -> str:
    """SHA-256 over what these samples hold, in this order: tokens and lengths or pixels, and labels."""
    rows, digest = np.asarray(samples, dtype=np.int64), hashlib.sha256()
    for name, value in sorted(vars(examples).items()):
        if isinstance(value, Ragged):
            parts = [value.lengths[rows], *(value[row] for row in rows)]
        elif isinstance(value, np.ndarray):
            parts = [value[rows]]
        else:
            continue
        digest.update(f"{name} {len(rows)} {parts[-1].dtype}".encode())
        for part in parts:
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def fingerprint_rows(dataset: Any) -> str:
    """SHA-256 over the rows of a ``datasets.Dataset``, or of any map-style data set whose items are mappings.

    Items that differ from one reading to the next (random augmentation) cannot be told from other data: then the
    number of rows is all that is known of them.
    """
    digest = hashlib.sha256(str(len(dataset)).encode())
    if hasattr(dataset, "with_format"):
        for rows in dataset.with_format("arrow").iter(1000):
            digest.update(repr(rows.to_pydict()).encode())
    elif len(dataset) and _bytes_of(dataset[0]) == _bytes_of(dataset[0]):
        for index in range(len(dataset)):
            digest.update(_bytes_of(dataset[index]))
    return digest.hexdigest()


def _bytes_of(item: Any) -> bytes:
    if not isinstance(item, Mapping):
        item = dict(enumerate(item if isinstance(item, tuple) else (item,)))
    parts = []
    for name, value in sorted(item.items()):
        array = np.asarray(value)
        parts.append(f"{name} {array.dtype} {array.shape} ".encode())
        parts.append(repr(value).encode() if array.dtype == object else array.tobytes())
    return b"".join(parts)


class TokenizedDataset:
    """Texts or pairs of texts with a class or a number each.

    labels: int64 [rows] for classification, float32 [rows] for regression. ``token_type_ids`` is None for models that
    take none.
    """

    def __init__(
        self,
        input_ids: Ragged,
        labels: np.ndarray,
        pad_token_id: int,
        token_type_ids: Ragged | None = None,
    ) -> None:
        if len(input_ids) != len(labels):
            raise ValueError(f"input_ids has {len(input_ids)} rows, labels {len(labels)}")
        self.input_ids, self.token_type_ids = input_ids, token_type_ids
        self.labels, self.lengths = labels, input_ids.lengths
        self.pad_token_id = pad_token_id

    def __len__(self) -> int:
        return len(self.labels)

    def collate(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """``input_ids``, ``attention_mask`` (and ``token_type_ids``) int64 [S, T]; targets [S]."""
        rows = np.asarray(indices, dtype=np.int64)
        ids, mask = self.input_ids.padded(rows, self.pad_token_id)
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}
        if self.token_type_ids is not None:
            types, _ = self.token_type_ids.padded(rows, 0)
            inputs["token_type_ids"] = torch.from_numpy(types)
        return inputs, torch.from_numpy(self.labels[rows])


class CausalDataset:
    """Texts for a causal language model; the loss counts an answer's own tokens only.

    answer_starts: int64 [rows], position of the first answer token in each row; counted: of each token 1 where it is
    part of an answer, where there are several in a row, else None. ``labels`` are all zero: there are no classes to
    partition by.
    """

    def __init__(
        self,
        input_ids: Ragged,
        answer_starts: np.ndarray,
        pad_token_id: int,
        counted: Ragged | None = None,
    ) -> None:
        if len(input_ids) != len(answer_starts):
            raise ValueError(f"input_ids has {len(input_ids)} rows, answer_starts {len(answer_starts)}")
        self.input_ids, self.answer_starts, self.counted = input_ids, answer_starts, counted
        self.lengths = input_ids.lengths
        self.labels = np.zeros(len(input_ids), dtype=np.int64)
        self.pad_token_id = pad_token_id

    def __len__(self) -> int:
        return len(self.input_ids)

    def collate(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """``input_ids``, ``attention_mask`` int64 [S, T]; targets int64 [S, T], not shifted, IGNORE_INDEX elsewhere."""
        rows = np.asarray(indices, dtype=np.int64)
        ids, mask = self.input_ids.padded(rows, self.pad_token_id)
        own = mask & (np.arange(ids.shape[1]) >= self.answer_starts[rows][:, None])
        if self.counted is not None:
            own &= self.counted.padded(rows, 0)[0] == 1
        targets = np.where(own, ids, IGNORE_INDEX)
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}
        return inputs, torch.from_numpy(targets)


class ImageDataset:
    """Images of one size with a class each.

    pixels: uint8 [rows, channels, height, width]; ``tokens`` is what one image costs the model (patches, and the class
    token). Values become (pixel / 255 - 0.5) / 0.5 in float32.
    """

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, tokens: int) -> None:
        if pixels.ndim != 4 or len(pixels) != len(labels):
            raise ValueError(f"pixels {pixels.shape} must be [rows, channels, height, width] with {len(labels)} rows")
        self.pixels, self.labels = pixels, labels
        self.lengths = np.full(len(pixels), tokens, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def collate(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """``pixel_values`` float32 [S, channels, height, width]; targets int64 [S]."""
        rows = np.asarray(indices, dtype=np.int64)
        values = torch.from_numpy(self.pixels[rows]).to(torch.float32).div_(255).sub_(0.5).div_(0.5)
        return {"pixel_values": values}, torch.from_numpy(self.labels[rows])
