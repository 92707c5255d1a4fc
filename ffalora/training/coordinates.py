"""Coordinates in which a step of both factors is a step of their product: gradients are clipped and noised there.

Of an adapter ``s·b·a``, a change of the factors moves the product by ``s(db·a + b·da)``, which depends on how the
product happens to be split: where ``b`` is short, the same ``da`` does little. With ``db = u·M_a`` and ``da = M_b·v``,

    M_a = κ (a aᵀ)^(-1/2),    M_b = κ (bᵀb + λ)^(-1/2),

a number of ``u`` and a number of ``v`` move it by ``s·κ`` each, through orthonormal rows (those of ``a``, made so) and
columns (of ``b``). The gradients in these coordinates are ``g_b·M_a`` and ``M_b·g_a``: their length does not depend on
the split (but for λ and κ), and is what is clipped; noise in ``u`` and in ``v`` is as large in the product, number by
number. κ is the length of the rows of ``a`` at the start of a round.

λ keeps ``a`` where it is while there is hardly a ``b`` that it could go with. √λ is how far a step without its noise
may move ``b``, plus how long the noise of all steps of the run would make it: so the noise of the whole run turns the
rows of ``a`` by less than their own length, that of a step by less than 1/√T of it (T steps), and a sample's own part
of a step by less than that length. The learning rate is in both, and does not change this.

After a step the factors are ``b + u·M_a`` and ``a + M_b·v``, whose product has rank R again. It differs from the step's
by ``s·db·da``, which those bounds keep small beside ``s·db·a``. Nothing is rebalanced: the coordinates would be the
same.

After PRISM (arXiv 2606.00944), which clips the length of the product's change: a change of the factors that leaves the
product as it is has none, and would pass unclipped into numbers that carry noise. Here what is clipped is what is
noised. The matrices follow from the state alone, and of one client's state all earlier steps are clipped and noised
(this is for samples and users that are protected; clients are not, see ``federated.checks``): a map that changes from
step to step costs no privacy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import Adapters, Layout
from ..adapters.layers import LowRank
from ..adapters.variants.base import rms_length
from .participant import Participant
from .workers import Workers

#: Of the mean square of a factor's directions: what is shorter counts as so long.
_SHORTEST_A, _SHORTEST_B = 1e-4, 1e-8


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
        the same map, ``[P]`` to ``[P]`` in the dtype of ``row``; other columns stay.
        """
        row = row.clone()
        for place in self.layout.places:
            if place.layer in self.mixes:
                of_a, of_b = (mix.to(row.dtype) for mix in self.mixes[place.layer])
                own = row[place.columns].view(place.shape)
                row[place.columns] = (own @ of_a if place.tensor == "lora_B" else of_b @ own).reshape(-1)
        return row


@dataclass(frozen=True)
class Whitening:
    """What the coordinates of all steps of a round have in common.

    Attributes:
        layout: of the rows.
        lengths: κ of each layer; shortest: √λ.
        workers: of whom the first computes for all.
    """

    layout: Layout
    lengths: Mapping[str, float]
    shortest: Mapping[str, float]
    workers: Workers

    @classmethod
    def of(
        cls, adapters: Adapters, cohort: Sequence[Participant], farthest: Tensor, steps: int, workers: Workers
    ) -> Whitening:
        """Of adapters as the model holds them.

        Args:
            cohort: one participant.
            farthest: float64 ``[P]``, how far a step without its noise may move each column.
            steps: of the run.

        Raises:
            ValueError: several participants, whose coordinates differ, or adapters of which one factor is trained.
        """
        layers = {name: layer for name, layer in adapters.layers.items() if isinstance(layer, LowRank)}
        if len(cohort) != 1 or any(not {"lora_A", "lora_B"} <= layer.places.keys() for layer in layers.values()):
            raise ValueError(
                f"steps of products are one participant's ({len(cohort)} given), and of adapters whose two factors are "
                "trained; train one after another, with adapter.trained='both'"
            )
        ledger = cohort[0].ledger
        noise = 0.0 if ledger is None else ledger.noise_multiplier / ledger.expected_batch * steps**0.5
        shortest = {
            name: float(farthest[layer.places["lora_B"]]) * (1.0 + noise * _widest(layer) ** 0.5)
            for name, layer in layers.items()
        }
        lengths = {name: rms_length(layer.lora_A) for name, layer in layers.items()}
        return cls(adapters.layout, lengths, shortest, workers)

    def at(self, row: Tensor) -> ProductCoordinates:
        """The coordinates at ``row`` float32 ``[P]``."""
        tensors = {(place.layer, place.tensor): row[place.columns].view(place.shape) for place in self.layout.places}
        grams, floors = {}, {}
        for name, shortest in self.shortest.items():
            a, b = tensors[name, "lora_A"].double(), tensors[name, "lora_B"].double()
            grams[name, 0], grams[name, 1] = a @ a.T, b.T @ b
            floors[name, 0], floors[name, 1] = (_SHORTEST_A, 0.0), (_SHORTEST_B, shortest**2)
        roots = self.workers.from_lead(lambda: _inverse_roots(grams, floors))
        mixes = {}
        for name, length in self.lengths.items():
            of_a, of_b = ((length * roots[name, side]).float().to(row.device) for side in (0, 1))
            mixes[name] = of_a, of_b
        return ProductCoordinates(self.layout, mixes)


_Key = tuple[str, int]


def _inverse_roots(grams: Mapping[_Key, Tensor], floors: Mapping[_Key, tuple[float, float]]) -> dict[_Key, Tensor]:
    """``(gram + λ)^(-1/2)`` of symmetric ``[R,R]``, float64 on the processor: all of one rank at once. What is not
    finite (training diverged) gives NaN.

    Args:
        floors: λ is the first times the mean of the eigenvalues, plus the second.
    """
    found: dict[_Key, Tensor] = {}
    for rank in {len(gram) for gram in grams.values()}:
        keys = [key for key, gram in grams.items() if len(gram) == rank]
        stacked = torch.stack([grams[key] for key in keys]).cpu()
        is_finite = stacked.isfinite().all(-1).all(-1)
        values, vectors = torch.linalg.eigh(torch.where(is_finite[:, None, None], stacked, torch.eye(rank).double()))
        values = values.clamp_min(0)
        share, least = torch.tensor([floors[key] for key in keys], dtype=torch.float64).unbind(1)
        damped = values + (share * values.mean(1) + least + 1e-30)[:, None]
        roots = (vectors / damped.sqrt()[:, None, :]) @ vectors.mT
        roots[~is_finite] = torch.nan
        found |= dict(zip(keys, roots, strict=True))
    return found


def _widest(layer: LowRank) -> int:
    """The longer of the adapter's two sides."""
    return max(layer.lora_A.shape[1], layer.lora_B.shape[0])
