"""Bytes that each operation moves to and from device memory: floors, and what our derivations add to them.

A floor counts every input read once and every output written once. Sizes as in ``ops``: M tokens, K in-features, N
out-features, R rank, S segments, C clients, P columns; ``e`` bytes an element of the activations. kernels/README.md
derives the formulas; the emulator counts the same bytes from the compiled kernels (``benchmarks/emulate.py``).
"""

from __future__ import annotations

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


def adapted_product_floor(m: int, n: int, k: int, r: int, e: int, c: int = 1, bias: bool = False) -> int:
    """``adapted_product``: x, w, h, b (and a bias) read, y written."""
    return (m * k + n * k + m * r + c * n * r + m * n + (n if bias else 0)) * e


def adapted_input_gradient_floor(m: int, n: int, k: int, r: int, e: int) -> int:
    """``adapted_input_gradient``: dy, w, dh and a read, dx written."""
    return (m * n + n * k + m * r + r * k + m * k) * e


def linear_cross_entropy_floor(m: int, d: int, v: int, s: int, e: int) -> int:
    """``linear_cross_entropy``: states, head, targets and offsets read, gradient, losses and right counts written."""
    return (2 * m * d + v * d) * e + m * INT64 + (s + 1) * INT32 + s * (FP32 + INT32)


def softmax_gradient_floor(m: int, v: int, e: int) -> int:
    """Between the products of ``linear_cross_entropy``: float32 logits and targets read, their gradient (in the dtype
    of the states), losses and right predictions written.
    """
    return m * v * (FP32 + e) + m * (INT64 + FP32 + INT32)


def segment_sums_floor(m: int, s: int) -> int:
    """Around it: targets and offsets read, weights written; losses, right predictions and weights read and summed."""
    return m * (INT64 + 3 * FP32 + INT32) + 2 * (s + 1) * INT32 + s * (FP32 + INT32)
