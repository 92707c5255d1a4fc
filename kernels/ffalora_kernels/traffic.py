"""Bytes that each operation moves to and from device memory: floors, our additions, and the schemes we compare with.

A floor counts every input read once and every output written once. Sizes as in ``ops``: M tokens, K in-features, N
out-features, R rank, S segments, C clients, P columns; ``e`` bytes an element of the activations. kernels/README.md
derives the formulas; the emulator counts the same bytes from the compiled kernels (``benchmarks/emulate.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

FP32, FP64, INT32, INT64 = 4, 8, 4, 8


def expand_floor(m: int, n: int, r: int, e: int, c: int = 1) -> int:
    """``expand_``: y read and written, h and b read."""
    return (2 * m * n + m * r + c * n * r) * e


def backward_floor(m: int, n: int, r: int, s: int, e: int, c: int = 1) -> int:
    """``backward``: dy, h and b read, dh and the fp32 segment gradients written."""
    return (m * n + 2 * m * r + c * n * r) * e + s * n * r * FP32


def backward_partials(m: int, n: int, r: int, e: int, block_n: int, deterministic: bool = True) -> int:
    """What summing dh over blocks of out-features adds to the floor of ``backward``.

    Deterministic: fp32 partials of every block, written and read once, or dy read a second time where that is less.
    Atomic: one fp32 buffer, updated and read once (the updates themselves stay in the L2 cache).
    """
    blocks = -(-n // block_n)
    if blocks == 1:
        return 0
    if not deterministic:
        return 2 * m * r * FP32
    return min(blocks * m * r * 2 * FP32, m * n * e)


def backward_chunks(m: int, n: int, r: int, s: int, chunk: int) -> int:
    """What splitting long segments over programs adds at most: partial gradients, written and read once."""
    return (m // chunk + s) * n * r * 2 * FP32


def outer_floor(m: int, n: int, k: int, s: int, e: int) -> int:
    """``outer``: p and q read, the fp32 product written (``k = 0``: column sums, without q)."""
    return m * (n + k) * e + s * n * max(k, 1) * FP32


def clip_reduce_floor(s: int, p: int, c: int, g: int = 1, squares_given: bool = True) -> int:
    """``clip_reduce_``: the arena read once (twice without norms), float64 totals read and written, S x G scalars."""
    return (1 if squares_given else 2) * s * p * FP32 + 2 * c * p * FP64 + s * g * 3 * FP64 + s * INT32


def privatize_step_floor(c: int, p: int, moments: int = 0, anchor: bool = False, index: bool = False) -> int:
    """``privatize_step_``: state and moments read and written, float64 total (and anchor, index) read."""
    rows = 2 * FP32 * (1 + moments) + FP64 + (FP32 if anchor else 0)
    return c * p * rows + (p * INT32 if index else 0) + c * (3 * INT64 + 3 * FP64)


def seeded_linear_floor(m: int, n: int, k: int, r: int, e: int, c: int = 1, bias: bool = False) -> int:
    """``seeded_linear``, the whole adapted forward: x, w, h, b (and a bias) read, y written."""
    return (m * k + n * k + m * r + c * n * r + m * n + (n if bias else 0)) * e


def seeded_dx_floor(m: int, n: int, k: int, r: int, e: int) -> int:
    """``seeded_dx``, the whole input gradient: dy, w, dh and a read, dx written."""
    return (m * n + n * k + m * r + r * k + m * k) * e


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
    once = backward_floor(q.m, q.n, q.r, q.s, q.e) + backward_partials(q.m, q.n, q.r, q.e, block_n)
    return once + q.s * q.n * q.r * FP32


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
        lambda q: (q.m * q.k + q.m * q.r) * q.e + expand_floor(q.m, q.n, q.r, q.e),
        lambda q: _ours(q) + (2 * q.m * q.k + q.m * q.r) * q.e,
    ),
    "ours, [w; a] stacked": Scheme(
        True,
        lambda q: 3 * q.m * q.r * q.e + expand_floor(q.m, q.n, q.r, q.e),
        lambda q: _ours(q) + (2 * q.m * q.k + q.m * q.r) * q.e,
    ),
    "ours, seeded GEMMs": Scheme(
        True,
        lambda q: (q.m * q.k + 2 * q.m * q.r + q.n * q.r) * q.e,
        lambda q: _ours(q) + (q.m * q.r + q.r * q.k) * q.e,
    ),
}
