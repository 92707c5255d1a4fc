"""VeRA with one vector frozen: ``scale · v ⊙ (b (d ⊙ (a x)))``, v trained (Kopiczko, Blankevoort, Asano, ICLR 2024)."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from .base import Variant, rms_length
from .expanded import rescaled


class VeRA(Variant):
    """``a [R,K]`` and ``b [N,R]`` are shared by all layers of one shape, as in the paper; ``d`` is frozen at 0.1.

    VeRA trains ``d`` too, which makes the update a product of two trained vectors. N trained numbers a layer.
    """

    factors_by_name = False

    def make_factors(self, n: int, k: int) -> tuple[int, ...]:
        self.frozen("vera_A", self.rank, k, std=0.1 * k**-0.5)
        self.frozen("vera_B", n, self.rank, std=self.rank**-0.5)
        return (n,)

    @cached_property
    def gain(self) -> float:
        return rms_length(self.vera_B @ self.vera_A)

    def adapter(self, x: Tensor, y: Tensor) -> Tensor:
        v, segments, sink = self.trained_theta(x)
        h = x.reshape(-1, x.shape[-1]) @ self.vera_A.to(x.dtype).T
        return rescaled(h, self.vera_B, v, self.scale, segments, sink).view(y.shape)

    def delta(self) -> Tensor:
        return self.scale * self.theta[:, None] * (self.vera_B @ self.vera_A)
