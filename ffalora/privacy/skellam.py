"""Integer noise that adds up exactly: the Skellam distribution, what it spends, and draws of it from raw words.

``Sk(μ)`` is the difference of two Poisson variables of mean μ/2: variance μ, ``P(k) = e^-μ I_|k|(μ)``. A sum of
independent ones is one whose variance is the sum, so that noise which clients bring in shares is the noise of the
theorem, however many stay (Agarwal, Kairouz, Liu, "The Skellam Mechanism for Differentially Private Federated
Learning", NeurIPS 2021, corollary 3.6). Sums of discrete Gaussians (Kairouz, Liu, Steinke, ICML 2021) are discrete
Gaussians only nearly, which has to be paid for in each coordinate.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

#: Tails less likely than 2 to the minus this are left out of a table; probabilities are rounded to multiples of it.
_BITS = 128
#: Guard bits of the recurrence that makes a table.
_GUARD = 160
_LARGEST_VARIANCE = 10**11


def noise_multiplier_of(variance: float, l2_squared: float, width: int) -> float:
    """σ such that the Rényi divergence of every whole order α is at most ``α/(2σ²)``.

    By corollary 3.6 it is at most ``αΔ₂²/(2μ) + min(((2α-1)Δ₂² + 6Δ₁)/(4μ²), 3Δ₁/(2μ))``; the second part over α is
    largest at α = 2, or, where ``6Δ₁ < Δ₂²``, at infinity. Whole numbers have ``Δ₁ ≤ min(Δ₂², √width Δ₂)``.

    Args:
        variance: μ of the noise in each coordinate.
        l2_squared: Δ₂², of the change of an integer vector.
        width: how many coordinates it has.
    """
    if not (variance > 0 and l2_squared > 0 and width > 0):
        raise ValueError(f"variance, l2_squared and width must be positive, got {variance}, {l2_squared}, {width}")
    l1 = min(l2_squared, math.sqrt(width * l2_squared))
    quadratic = max(l2_squared / (2 * variance**2), (3 * l2_squared + 6 * l1) / (8 * variance**2))
    most = l2_squared / (2 * variance) + min(quadratic, 3 * l1 / (4 * variance))
    return 1 / math.sqrt(2 * most)


def variance_for(noise_multiplier: float, l2_squared: float, width: int) -> float:
    """The least μ found (to one part in 2⁴⁰) whose :func:`noise_multiplier_of` is not below ``noise_multiplier``."""
    low = noise_multiplier**2 * l2_squared
    high = 2 * low + 2
    while noise_multiplier_of(high, l2_squared, width) < noise_multiplier:
        high *= 2
    while high / low > 1 + 2.0**-40:
        middle = math.sqrt(low * high)
        if noise_multiplier_of(middle, l2_squared, width) < noise_multiplier:
            low = middle
        else:
            high = middle
    return high


def skellam(words: NDArray[np.uint64], variance: int) -> NDArray[np.int64]:
    """Independent draws of ``Sk(variance)``, int64 ``[n]``, from uniform words ``[n,2]``, by inversion.

    Each draw's distribution is within 2⁻¹¹⁰ of Skellam's in total variation: a whole run's δ grows by less than 2⁻⁷⁰.

    Raises:
        ValueError: a variance below 1 or above 10¹¹.
    """
    high, low = _table(variance)
    first = np.searchsorted(high, words[:, 0], side="left")
    last = np.searchsorted(high, words[:, 0], side="right")
    for tied in np.flatnonzero(first != last):
        begin, end = int(first[tied]), int(last[tied])
        last[tied] = begin + np.searchsorted(low[begin:end], words[tied, 1], side="right")
    return last.astype(np.int64) - len(high) // 2


@lru_cache(maxsize=8)
def _table(variance: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Upper and lower halves of ``⌊2¹²⁸ P(X ≤ k)⌋`` for k from -reach to reach - 1."""
    if not 1 <= variance <= _LARGEST_VARIANCE:
        raise ValueError(f"variance must lie in 1 … 10**11, got {variance}")
    reach = _reach(variance)
    # I_(k-1)(μ) = I_(k+1)(μ) + 2k/μ I_k(μ), downwards from far out, where it is stable (Miller's algorithm).
    weights, beyond = [1 << _GUARD], 0
    for k in range(reach, 0, -1):
        weights.append(beyond + 2 * k * weights[-1] // variance)
        beyond = weights[-2]
    whole = 2 * sum(weights) - weights[-1]
    high, low, passed = [], [], 0
    for weight in weights + weights[-2:0:-1]:
        passed += weight
        threshold = (passed << _BITS) // whole
        high.append(threshold >> 64)
        low.append(threshold & (2**64 - 1))
    return np.array(high, dtype=np.uint64), np.array(low, dtype=np.uint64)


def _reach(variance: int) -> int:
    """The least number that a draw exceeds with probability below 2⁻¹²⁸, by Chernoff's bound."""

    def exponent(k: int) -> float:
        return k * math.asinh(k / variance) - k * k / (variance + math.hypot(k, variance))

    low, high = 0, 16
    while exponent(high) < _BITS * math.log(2):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if exponent(middle) >= _BITS * math.log(2) else (middle, high)
    return high
