"""Coordinates in which a step of both factors is a step of their product: gradients are clipped and noised there.

Of an adapter ``s·b·a``, a change of the factors moves the product by ``s(db·a + b·da)``, which depends on how the
product happens to be split: where ``b`` is short, the same ``da`` does little. With ``db = u·M_a`` and ``da = M_b·v``,

    M_a = κ (a aᵀ)^(-1/2),    M_b = κ (bᵀb + λ)^(-1/2),

a unit of ``u`` and a unit of ``v`` move it by ``s·κ`` each, through orthonormal rows (``a`` whitened) and columns
(``b`` whitened). The gradients in these coordinates are ``g_b·M_a`` and ``M_b·g_a``: their length does not depend on
the split (but for λ), and is what is clipped; noise of one size in ``u`` and ``v`` is as large in the product whichever
factor it enters by. κ is the length of the rows of ``a`` at the start of a round, so that a first step of ``b``, beside
orthonormal rows, is FFA-LoRA's.

λ keeps ``a`` still while there is hardly a ``b``: it is the square of how far one step may move ``b``, so that none
turns the rows of ``a`` farther than by about their own length. After a step the factors are ``b + u·M_a`` and
``a + M_b·v``, whose product is of rank R again and differs from the step's in second order: it needs no retraction, and
balanced factors would change nothing, since the coordinates do not depend on them.

After PRISM (arXiv 2606.00944), whose clipping bounds the length of the product's change, where a change of the factors
that leaves the product as it is has none; here what is clipped is what is noised. The matrices follow from the state
alone, which earlier steps have released: that the map changes from step to step costs no privacy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import Adapters, Layout
from ..adapters.layers import LowRank
from ..adapters.variants.base import rms_length

_SMALLEST = 1e-8  # of the mean square of a factor: what is shorter is rounding


@dataclass(frozen=True)
class ProductCoordinates:
    """The coordinates at one client's factors.

    Attributes:
        layout: of the row.
        mixes: by layer, ``M_a`` and ``M_b``, float32 ``[R,R]``, both symmetric.
    """

    layout: Layout
    mixes: Mapping[str, tuple[Tensor, Tensor]]

    def turned(self, row: Tensor) -> Tensor:
        """A gradient of the factors as one in these coordinates, or a step in these coordinates as one of the factors:
        the same map, float32 ``[P]`` to ``[P]``; other columns stay.
        """
        row = row.clone()
        for place in self.layout.places:
            if place.layer in self.mixes:
                of_a, of_b = self.mixes[place.layer]
                own = row[place.columns].view(place.shape)
                row[place.columns] = (own @ of_a if place.tensor == "lora_B" else of_b @ own).reshape(-1)
        return row


@dataclass(frozen=True)
class Whitening:
    """What the coordinates of all steps of a round have in common.

    Attributes:
        layout: of the rows.
        lengths: κ of each layer; steps: how far a step without its noise may move its ``b``, √λ.
    """

    layout: Layout
    lengths: Mapping[str, float]
    steps: Mapping[str, float]

    @classmethod
    def of(cls, adapters: Adapters, farthest: Tensor) -> Whitening:
        """Of adapters as the model holds them; ``farthest`` float64 ``[P]``: how far a step may move each column."""
        lengths = {
            name: rms_length(layer.lora_A) for name, layer in adapters.layers.items() if isinstance(layer, LowRank)
        }
        places = [place for place in adapters.layout.places if place.tensor == "lora_B"]
        return cls(adapters.layout, lengths, {place.layer: float(farthest[place.start]) for place in places})

    def at(self, row: Tensor) -> ProductCoordinates:
        """The coordinates at ``row`` float32 ``[P]``."""
        tensors = {(place.layer, place.tensor): row[place.columns].view(place.shape) for place in self.layout.places}
        mixes = {}
        for name, length in self.lengths.items():
            a, b = tensors[name, "lora_A"].double(), tensors[name, "lora_B"].double()
            of_a, of_b = _inverse_root(a @ a.T, 0.0), _inverse_root(b.T @ b, self.steps[name] ** 2)
            mixes[name] = (length * of_a).float(), (length * of_b).float()
        return ProductCoordinates(self.layout, mixes)


def _inverse_root(gram: Tensor, damped: float) -> Tensor:
    """``(gram + damped)^(-1/2)`` of a symmetric ``[R,R]``; by the processor, which solves small ones at once."""
    values, vectors = torch.linalg.eigh(gram.cpu())
    values = values.clamp_min(0)
    floor = damped + _SMALLEST * float(values.mean()) + 1e-30
    return ((vectors / (values + floor).sqrt()) @ vectors.T).to(gram.device)
