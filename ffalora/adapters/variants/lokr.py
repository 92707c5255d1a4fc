"""LoKr with one factor frozen: ``scale · theta ⊗ w2`` (Kronecker product; Yeh et al., ICLR 2024)."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from .base import Variant, rms_length
from .expanded import expanded


class LoKr(Variant):
    """``theta [O,I]`` is the method's ``w1``, zero at first; ``w2 [N/O, K/I]`` is random and frozen.

    O and I are the largest divisors of N and K that do not exceed the rank. A token stands for N/O tokens of the
    segment kernels, with I features and O outputs: the same memory as one output.
    """

    def make_factors(self, n: int, k: int) -> tuple[int, ...]:
        self.outer_size, self.inner_size = _divisor(n, self.rank), _divisor(k, self.rank)
        self.frozen("w2", n // self.outer_size, k // self.inner_size, std=(k // self.inner_size) ** -0.5)
        return (self.outer_size, self.inner_size)

    @cached_property
    def gain(self) -> float:
        return rms_length(self.w2.reshape(1, -1))

    def adapter(self, x: Tensor, y: Tensor) -> Tensor:
        width = len(self.w2)
        theta, segments, sink = self.trained_theta(x, repeats=width)
        u = x.reshape(-1, self.inner_size, self.w2.shape[1]) @ self.w2.to(x.dtype).T  # [M, I, N/O]
        h = u.transpose(1, 2).reshape(-1, self.inner_size).contiguous()  # of one token reshape makes a view across
        parts = expanded(h, theta, self.scale, segments, sink)
        return parts.view(-1, width, self.outer_size).transpose(1, 2).reshape(y.shape)

    def delta(self) -> Tensor:
        return self.scale * torch.kron(self.theta, self.w2)


def _divisor(size: int, limit: int) -> int:
    return next(d for d in range(min(size, limit), 0, -1) if size % d == 0)
