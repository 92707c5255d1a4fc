"""Where the random factor ``a`` comes from: a pure function of the seed and the layer's name."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor


def generator_for(seed: int, name: str) -> torch.Generator:
    """A generator of its own for (seed, name): independent of the global state and of any order of calls."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def initial_a(rank: int, in_features: int, kind: str, seed: int, name: str) -> Tensor:
    """The frozen random factor, float32 ``[R,K]``.

    * kaiming: uniform on ±1/√K (PEFT's default; He et al. 2015 with a = √5).
    * gaussian: normal with standard deviation 1/R (PEFT's 'gaussian').
    * orthonormal: R orthonormal rows, uniformly distributed (as FedSVD uses; rows beyond K start anew).
    """
    generator = generator_for(seed, name)
    if kind == "kaiming":
        return (torch.rand(rank, in_features, generator=generator) * 2 - 1) / math.sqrt(in_features)
    if kind == "gaussian":
        return torch.randn(rank, in_features, generator=generator) / rank
    if kind == "orthonormal":
        blocks = []
        for start in range(0, rank, in_features):
            rows = min(in_features, rank - start)
            q, r = torch.linalg.qr(torch.randn(in_features, rows, generator=generator, dtype=torch.float64))
            blocks.append((q * r.diagonal().sign()).T.float())
        return torch.cat(blocks).contiguous()
    raise ValueError(f"init must be 'kaiming', 'gaussian' or 'orthonormal' for a random a, got {kind!r}")


FROM_BASE = ("pissa", "olora")


def factors_from_base(w: Tensor, rank: int, kind: str, scale: float) -> tuple[Tensor, Tensor]:
    """``a [R,K]`` and ``b [N,R]`` taken from the base weight ``w [N,K]``, float32; the base gives up ``scale · b a``.

    * pissa: the R largest singular directions, ``b = U √(S/scale)`` and ``a = √(S/scale) Vᵀ`` (Meng et al., NeurIPS
      2024).
    * olora: the first R columns of Q and rows of R of a QR decomposition (Büyükakyüz 2024).

    Raises:
        ValueError: the rank exceeds the smaller side of the weight.
    """
    if rank > min(w.shape):
        raise ValueError(
            f"init={kind!r} takes R directions of the base weight; rank={rank} exceeds its smaller side {min(w.shape)}"
        )
    w = w.detach().float()
    if kind == "olora":
        q, r = torch.linalg.qr(w)
        return r[:rank].contiguous(), q[:, :rank].contiguous()
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    return (root[:, None] * vh[:rank]).contiguous(), (u[:, :rank] * root).contiguous()
