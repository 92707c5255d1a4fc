"""LoHa with three factors frozen: ``scale · (w1_a w1_b) ⊙ (theta w2_b)`` (Hyeon-Woo, Ye-Bin, Oh, ICLR 2022)."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from .base import Variant, rms_length
from .expanded import expanded


class LoHa(Variant):
    """``theta [N,R]`` is the method's ``w2_a``, the factor that starts at zero.

    The Hadamard product with a matrix of rank R is a sum of R rescaled low-rank products, so that every token stands
    for R tokens of the segment kernels: R times the memory of LoRA's output. Meant for small R.
    """

    def make_factors(self, n: int, k: int) -> tuple[int, ...]:
        self.frozen("w1_a", n, self.rank, std=self.rank**-0.5)
        self.frozen("w1_b", self.rank, k)
        self.frozen("w2_b", self.rank, k, std=k**-0.5)
        return (n, self.rank)

    @cached_property
    def gain(self) -> float:
        return rms_length((self.w1_a @ self.w1_b).square().mean(0).sqrt() * self.w2_b)

    def adapter(self, x: Tensor, y: Tensor) -> Tensor:
        r = self.rank
        theta, segments, sink = self.trained_theta(x, repeats=r)
        mixed = (self.w1_b[:, None, :] * self.w2_b[None, :, :]).to(x.dtype)  # [R, R, K]
        h = x.reshape(-1, x.shape[-1]) @ mixed.flatten(0, 1).T  # [M, R·R]
        parts = expanded(h.view(-1, r), theta, self.scale, segments, sink)  # [M·R, N]
        return (parts.view(-1, r, parts.shape[1]) * self.w1_a.to(x.dtype).T).sum(1).view(y.shape)

    def delta(self) -> Tensor:
        return self.scale * (self.w1_a @ self.w1_b) * (self.theta @ self.w2_b)
