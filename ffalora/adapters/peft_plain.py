"""Adapters for servers that know one rank and one whole alpha: neither patterns nor rsLoRA, nor factors whose product
the base gave up.

llama.cpp and Ollama scale by ``lora_alpha`` over a tensor's rank, vLLM by ``lora_alpha`` over ``r``; none of them reads
patterns, and vLLM alone reads rsLoRA.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..config.adapter import AdapterConfig
from .init import FROM_BASE
from .layers import LowRank


def is_plain(config: AdapterConfig) -> bool:
    """Whether ``alpha/R`` scales every layer, on the base model as it is."""
    patterns = config.rank_pattern or config.alpha_pattern
    return not (patterns or config.use_rslora or config.init in FROM_BASE) and config.alpha.is_integer()


def plain_factors(layers: Mapping[str, LowRank]) -> tuple[int, dict[str, dict[str, Tensor]]]:
    """What each layer adds to its base weight, as factors of one rank that nothing scales.

    Args:
        layers: by name; a product that a base gave up at the start (PiSSA, OLoRA) becomes part of the factors, whose
            rank it doubles.

    Returns:
        The rank, and by name float32 factors under the names and in the shapes of PEFT's files, filled up with zeros
        where a layer's rank is smaller.
    """
    found = {name: _scaled(layer) for name, layer in layers.items()}
    rank = max(len(a) for a, _ in found.values())
    return rank, {
        name: {"lora_A.weight": _filled(a, rank, 0), "lora_B.weight": _filled(b, rank, 1)}
        for name, (a, b) in found.items()
    }


def _scaled(layer: LowRank) -> tuple[Tensor, Tensor]:
    own = layer.checkpoint()
    a, b = own["lora_A.weight"].detach().float(), layer.scale * own["lora_B.weight"].detach().float()
    if layer.initial is None:
        return a, b
    before, after = layer.initial
    a = torch.cat([a, before.float().view_as(a)])
    return a, torch.cat([b, -layer.scale * after.float().view_as(b)], dim=1)


def _filled(factor: Tensor, rank: int, dim: int) -> Tensor:
    missing = list(factor.shape)
    missing[dim] = rank - missing[dim]
    return torch.cat([factor, factor.new_zeros(missing)], dim=dim)
