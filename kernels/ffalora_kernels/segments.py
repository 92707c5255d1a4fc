"""Segments: the contiguous runs of tokens whose gradients are kept apart.

Segments are samples under DP-SGD, clients in a federated pass, and a single one in ordinary training. Padded and packed
batches differ only in the offsets, so every operation of this package takes the same two index tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Indices: TypeAlias = Sequence[int] | Tensor


@dataclass(frozen=True, eq=False)
class Segments:
    """Where each segment starts and whose ``b`` it uses. Make one with the class methods; they check it once, on the
    CPU.

    Attributes:
        offsets: int32 ``[S+1]``; segment ``i`` owns tokens ``offsets[i] … offsets[i+1]-1``; ``offsets[S] == n_tokens``.
        client: int32 ``[S]``; the row of ``b [C,N,R]`` (and of the state ``[C,P]``) that segment ``i`` uses.
        n_clients: C.
        longest: tokens in the longest segment (0 when there are none).
        n_tokens: M, the tokens covered.
    """

    offsets: Tensor
    client: Tensor
    n_clients: int
    longest: int
    n_tokens: int

    def __len__(self) -> int:
        """S, the number of segments."""
        return self.client.numel()

    @classmethod
    def from_offsets(
        cls, offsets: Indices, client: Indices | None = None, n_clients: int = 1, device: torch.device | str = "cpu"
    ) -> Segments:
        """Segments between consecutive offsets. Empty segments and an empty batch (``offsets=[0]``) are allowed.

        Raises:
            ValueError: offsets not starting at 0 or not sorted, a client outside ``0 … n_clients-1``, or lengths that
                differ.
        """
        start = torch.as_tensor(offsets, dtype=torch.int64).cpu()
        if start.dim() != 1 or start.numel() == 0 or start[0] != 0:
            raise ValueError(f"offsets must be one-dimensional and start at 0, got {offsets!r}")
        lengths = start.diff()
        if (lengths < 0).any():
            at = int((lengths < 0).nonzero()[0])
            raise ValueError(
                f"offsets must not decrease, but offsets[{at}]={start[at]} > offsets[{at + 1}]={start[at + 1]}"
            )
        if start[-1] >= 2**31:
            raise ValueError(f"offsets end at {start[-1]} tokens; one call takes fewer than 2**31: split the batch")
        owner = (
            torch.zeros(lengths.numel(), dtype=torch.int64) if client is None else torch.as_tensor(client).cpu().long()
        )
        if owner.shape != lengths.shape:
            raise ValueError(f"client names {owner.numel()} segments, but offsets describe {lengths.numel()}")
        if n_clients < 1 or (owner.numel() and (owner.min() < 0 or owner.max() >= n_clients)):
            raise ValueError(f"client must lie in 0 … n_clients-1 = {n_clients - 1}, got {owner.tolist()}")
        return cls(
            offsets=start.to(torch.int32).to(device),
            client=owner.to(torch.int32).to(device),
            n_clients=n_clients,
            longest=int(lengths.max()) if lengths.numel() else 0,
            n_tokens=int(start[-1]),
        )

    @classmethod
    def from_lengths(
        cls, lengths: Indices, client: Indices | None = None, n_clients: int = 1, device: torch.device | str = "cpu"
    ) -> Segments:
        """Segments of the given lengths, one after another (a packed batch)."""
        length = torch.as_tensor(lengths, dtype=torch.int64).cpu().reshape(-1)
        return cls.from_offsets(torch.cat([length.new_zeros(1), length.cumsum(0)]), client, n_clients, device)

    @classmethod
    def uniform(
        cls,
        count: int,
        length: int,
        client: Indices | None = None,
        n_clients: int = 1,
        device: torch.device | str = "cpu",
    ) -> Segments:
        """``count`` segments of ``length`` tokens each (a padded batch)."""
        if count < 0 or length < 0:
            raise ValueError(f"count and length must not be negative, got {count} and {length}")
        return cls.from_offsets(torch.arange(count + 1) * length, client, n_clients, device)
