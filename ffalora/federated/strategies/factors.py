"""The factors inside flat rows, and the linear algebra of their products. Everything here is float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...adapters.state import Layout


@torch.no_grad()
def factors(layout: Layout, layer: str, rows: Tensor) -> tuple[Tensor, Tensor]:
    """``b [C,N,R]`` and ``a [C,R,K]`` of a layer in rows ``[C,P]``; a frozen one is the model's, for every client."""
    own, found = layout.layers[layer], []
    for tensor, parameter in own.factors().items():
        place = layout.at.get(f"{layer}.{tensor}")
        value = parameter.detach()[None].expand(len(rows), *parameter.shape)
        if place is not None:
            value = rows[:, place.columns].view(-1, *place.shape)
        found.append(value.double())
    return found[0], found[1]


@torch.no_grad()
def write_factors_(layout: Layout, layer: str, row: Tensor, b: Tensor, a: Tensor) -> None:
    """Writes ``b [N,R]`` and ``a [R,K]`` into the layer's columns of ``row [P]``; it must have both."""
    for tensor, value in (("lora_B", b), ("lora_A", a)):
        start = layout.at[f"{layer}.{tensor}"].start
        row[start : start + value.numel()] = value.reshape(-1).to(row.dtype)


def stacked(b: Tensor, a: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """``[N,CR]`` and ``[CR,K]`` whose product is ``Σ_c w_c b_c a_c``."""
    c, n, r = b.shape
    up = (b * weights.to(b)[:, None, None]).permute(1, 0, 2).reshape(n, c * r)
    return up, a.reshape(c * r, -1)


def low_rank_svd(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Exact SVD of ``up [N,q] @ down [q,K]`` through two thin QRs: O((N+K)q²), never a matrix ``[N,K]``.

    Returns:
        u ``[N,p]``, s ``[p]`` descending, vt ``[p,K]``, with p = min(N, q, K). The largest entry of each row of vt is
        positive, so that the answer does not depend on the machine's sign conventions.
    """
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    u, s, vt = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    u, vt = q_up @ u, vt @ q_down.T
    signs = vt.gather(1, vt.abs().argmax(1, keepdim=True)).sign()
    return u * signs.T, s, vt * signs


def padded(u: Tensor, s: Tensor, vt: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``b [N,R] = u·s`` and ``a [R,K] = vt``, cut to ``rank`` or filled up with zeros."""
    b, a = (u * s)[:, :rank], vt[:rank]
    missing = rank - len(a)
    return torch.nn.functional.pad(b, (0, missing)), torch.nn.functional.pad(a, (0, 0, 0, missing))


def relative_gap(parts: Sequence[tuple[Tensor, Tensor]]) -> float:
    """``√(Σ‖wanted - got‖² / Σ‖wanted‖²)`` over layers; 0 where nothing was wanted."""
    missing = sum(float((wanted - got).square().sum()) for wanted, got in parts)
    total = sum(float(wanted.square().sum()) for wanted, _ in parts)
    return (missing / total) ** 0.5 if total else 0.0


def aggregation_gap(layout: Layout, rows: Tensor, weights: Tensor) -> float:
    """``‖mean(b_k a_k) - mean(b_k) mean(a_k)‖ / ‖mean(b_k a_k)‖`` over all layers: 0 where averaging is exact.

    Both means are weighted; a frozen factor is the same for every client. 0 also where nobody answered.
    """
    parts: list[tuple[Tensor, Tensor]] = []
    if not len(rows):
        return 0.0
    for layer, own in layout.layers.items():
        if "lora_A" not in own.factors():
            continue
        b, a = factors(layout, layer, rows)
        up, down = stacked(b, a, weights)
        w = weights.to(b)
        averaged = torch.einsum("c,cnr->nr", w, b) @ torch.einsum("c,crk->rk", w, a)
        parts.append((up @ down, averaged))
    return relative_gap(parts)


def rank_mask(layout: Layout, ranks: Sequence[int]) -> Tensor:
    """bool ``[C,P]``: the columns that belong to the first ``ranks[c]`` ranks of each layer; heads are everyone's."""
    mask = torch.ones(len(ranks), layout.width, dtype=torch.bool)
    rank = torch.as_tensor(ranks)[:, None]
    for place in layout.places:
        if place.tensor not in ("lora_A", "lora_B"):
            continue
        index = torch.arange(place.size)
        own = index % place.shape[1] if place.tensor == "lora_B" else index // place.shape[1]
        mask[:, place.columns] = own < rank
    return mask
