"""Ways to train the adapter and the bytes that each must move beside the base products: ours and those of others.

The rows of others are models of what their schemes must move, not measurements; kernels/README.md has the formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ffalora_kernels import traffic


@dataclass(frozen=True)
class Layer:
    """One adapted linear layer and its batch: S segments of T tokens, e bytes an element."""

    s: int
    t: int
    k: int
    n: int
    r: int
    e: int = 2

    @property
    def m(self) -> int:
        """Tokens of the batch."""
        return self.s * self.t


@dataclass(frozen=True)
class Scheme:
    """A way to train the adapter: bytes beside the base GEMMs (x wᵀ and dy w), forward and backward.

    Attributes:
        private: whether it yields clipped per-sample gradients.
        forward, backward: bytes for a :class:`Layer`.
    """

    private: bool
    forward: Callable[[Layer], int]
    backward: Callable[[Layer], int]


def _peft_backward(q: Layer) -> int:
    return (4 * q.m * q.n + 4 * q.m * q.k) * q.e


def _gram(q: Layer) -> int:
    """The T x T matrices ``h hᵀ`` and ``dy dyᵀ`` of ghost norms, written and read, and dy read for them."""
    return (4 * q.s * q.t * q.t + q.m * q.n) * q.e


def _base_gemm(q: Layer) -> int:
    return (q.m * q.n + q.n * q.k + q.m * q.k) * q.e


def _ours(q: Layer, block_n: int = 256) -> int:
    """dy once, h, dh and b, the partials of dh, and the arena written once and read once by ``clip_reduce_``."""
    once = traffic.backward_floor(q.m, q.n, q.r, q.s, q.e) + traffic.backward_partials(q.m, q.n, q.r, q.e, block_n)
    return once + q.s * q.n * q.r * traffic.FP32


SCHEMES: dict[str, Scheme] = {
    "PEFT eager": Scheme(False, lambda q: (q.m * q.k + 6 * q.m * q.n) * q.e, _peft_backward),
    "matmul + addmm_": Scheme(
        False, lambda q: (q.m * q.k + 2 * q.m * q.n) * q.e, lambda q: (2 * q.m * q.n + 2 * q.m * q.k) * q.e
    ),
    "LoRAFusion's scheme": Scheme(False, lambda q: q.m * q.k * q.e, lambda q: q.m * q.n * q.e),
    "merged weights": Scheme(
        False, lambda q: 2 * q.n * q.k * q.e, lambda q: (q.m * q.k + q.m * q.n + 2 * q.m * q.r) * q.e
    ),
    "Opacus hooks on PEFT": Scheme(
        True,
        lambda q: (q.m * q.k + 6 * q.m * q.n) * q.e,
        lambda q: _peft_backward(q) + q.m * q.n * q.e + 12 * q.s * q.n * q.r,
    ),
    "Opacus ghost on PEFT": Scheme(
        True,
        lambda q: (q.m * q.k + 6 * q.m * q.n) * q.e,
        lambda q: 2 * _peft_backward(q) + _base_gemm(q) + _gram(q),
    ),
    "book-keeping": Scheme(
        True,
        lambda q: (q.m * q.k + 6 * q.m * q.n) * q.e,
        lambda q: _peft_backward(q) + _gram(q) + q.m * q.n * q.e,
    ),
    "ours, expand_ and addmm_": Scheme(
        True,
        lambda q: (q.m * q.k + q.m * q.r) * q.e + traffic.expand_floor(q.m, q.n, q.r, q.e),
        lambda q: _ours(q) + (2 * q.m * q.k + q.m * q.r) * q.e,
    ),
}
