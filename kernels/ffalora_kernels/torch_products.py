"""The adapter's products by torch, one a run of neighbouring segments of the same client: what answers where no kernel
pays (``cpu_products``) or none is compiled (``gpu_products``).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def torch_expand(y: Tensor, h: Tensor, b: Tensor, offsets: Tensor, client: Tensor, scale: float, longest: int) -> None:
    """See :func:`ffalora_kernels.ops.expand_`."""
    for rows, c in _runs(b, offsets, client):
        y[rows].addmm_(h[rows], b[c].T.to(h.dtype), alpha=scale)


def torch_dh(dy: Tensor, h: Tensor, b: Tensor, offsets: Tensor, client: Tensor, scale: float) -> Tensor:
    """``scale · dy b_c`` ``[M,R]``, what ``backward`` returns; arguments as there."""
    dh = torch.empty_like(h, memory_format=torch.contiguous_format)
    for rows, c in _runs(b, offsets, client):
        dh[rows].addmm_(dy[rows], b[c].to(dy.dtype), beta=0, alpha=scale)
    return dh


def _runs(b: Tensor, offsets: Tensor, client: Tensor) -> Iterator[tuple[slice, int]]:
    """The rows of neighbouring segments of one client, and that client."""
    if b.shape[0] == 1:
        yield slice(None), 0
        return
    bounds, clients = offsets.tolist(), client.tolist()
    first = 0
    for i, c in enumerate(clients):
        if i + 1 == len(clients) or clients[i + 1] != c:
            yield slice(bounds[first], bounds[i + 1]), c
            first = i + 1
