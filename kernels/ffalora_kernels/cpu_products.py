"""``expand_``, ``backward`` and ``outer`` by torch's own products, where ``cpu_choices`` says that they are faster.

``IMPLEMENTATIONS`` has what answers on processors where no backend was asked for by name. A segment's gradient is
torch's product where the segment is large enough to pay for a call, which depends on that segment alone; the others
are left to the C++ kernel. In bfloat16 torch's products are rounded to bfloat16 before they reach the float32 arena.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from . import cpu
from .cpu_choices import torch_answers
from .torch_products import torch_dh, torch_expand

#: Products and sums of a segment's gradient from which on a call of torch's product is worth its microseconds.
WORTH_A_CALL = 1_500_000


def expand(y: Tensor, h: Tensor, b: Tensor, offsets: Tensor, client: Tensor, scale: float, longest: int) -> None:
    """``expand_``, by the faster form."""
    if y.dtype in cpu.COMPILED and torch_answers("expand_", y.dtype, b.shape[1], b.shape[2]):
        return torch_expand(y, h, b, offsets, client, scale, longest)
    cpu.expand(y, h, b, offsets, client, scale, longest)


def backward(
    dy: Tensor, h: Tensor, b: Tensor, offsets: Tensor, client: Tensor, scale: float, longest: int,
    arena: Tensor, column: int, squares: Tensor | None, slot: int, accumulate: bool, deterministic: bool,
) -> Tensor:  # fmt: skip
    """``backward``, by the faster form."""
    by_torch = dy.dtype in cpu.COMPILED and torch_answers("backward", dy.dtype, b.shape[1], b.shape[2])
    return (torch_backward if by_torch else cpu.backward)(
        dy, h, b, offsets, client, scale, longest, arena, column, squares, slot, accumulate, deterministic
    )


def torch_backward(
    dy: Tensor, h: Tensor, b: Tensor, offsets: Tensor, client: Tensor, scale: float, longest: int,
    arena: Tensor, column: int, squares: Tensor | None, slot: int, accumulate: bool, deterministic: bool,
) -> Tensor:  # fmt: skip
    """``backward``: ``dh`` by :func:`torch_dh`, ``g`` by :func:`torch_outer`."""
    torch_outer(dy, h, offsets, scale, longest, arena, column, squares, slot, accumulate)
    return torch_dh(dy, h, b, offsets, client, scale)


def outer(
    p: Tensor, q: Tensor | None, offsets: Tensor, scale: float, longest: int,
    arena: Tensor, column: int, squares: Tensor | None, slot: int, accumulate: bool,
) -> None:  # fmt: skip
    """``outer``, by the faster form."""
    if q is not None and p.dtype in cpu.COMPILED:
        narrow, wide = sorted((p.shape[1], q.shape[1]))
        if torch_answers("outer", p.dtype, wide, narrow):
            return torch_outer(p, q, offsets, scale, longest, arena, column, squares, slot, accumulate)
    cpu.outer(p, q, offsets, scale, longest, arena, column, squares, slot, accumulate)


def torch_outer(
    p: Tensor, q: Tensor, offsets: Tensor, scale: float, longest: int,
    arena: Tensor, column: int, squares: Tensor | None, slot: int, accumulate: bool,
) -> None:  # fmt: skip
    """``outer``: one product a segment, where it is worth a call."""
    n, k = p.shape[1], q.shape[1]
    if longest * n * k < WORTH_A_CALL:
        return cpu.outer(p, q, offsets, scale, longest, arena, column, squares, slot, accumulate)
    for i, (first, end) in enumerate(pairwise(offsets.tolist())):
        if (end - first) * n * k < WORTH_A_CALL:
            own, norms = offsets.new_tensor([0, end - first]), None if squares is None else squares[i : i + 1]
            cpu.outer(
                p[first:end], q[first:end], own, scale, end - first, arena[i : i + 1], column, norms, slot, accumulate
            )
            continue
        g = torch.mm(p[first:end].T, q[first:end])
        target = arena[i, column : column + n * k].view(n, k)
        if accumulate:
            target.add_(g, alpha=scale)
        else:
            torch.mul(g, scale, out=target) if g.dtype is target.dtype else target.copy_(g).mul_(scale)
        if squares is not None:
            squares[i, slot] = torch.linalg.vector_norm(target, dtype=torch.float64).square()


IMPLEMENTATIONS = cpu.IMPLEMENTATIONS | {"expand_": expand, "backward": backward, "outer": outer}
