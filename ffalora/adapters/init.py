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
    raise ValueError(f"init must be 'kaiming', 'gaussian' or 'orthonormal', got {kind!r}")
