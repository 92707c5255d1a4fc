"""Noise that clients bring in shares, so that nobody at the server has to be trusted with it.

Each client clips its update, turns it so that no coordinate is large, rounds it to whole numbers and adds a share of
Skellam noise; secure aggregation adds up the shares modulo a power of two, and shows nothing but that sum (Kairouz,
Liu, Steinke, ICML 2021, algorithm 1, with the noise of Agarwal, Kairouz, Liu, NeurIPS 2021). The noise of those who
stay and are honest is what the server cannot subtract: ``clients - dropouts - colluders`` shares are enough. What one
client moves is bounded on the whole numbers themselves, so that no rounding of a computer is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .noise import NoiseSource
from .sampling import raw_words
from .skellam import skellam, variance_for

_SIGNS, _ROUNDING, _SHARE = 0x5E03, 0x5E04, 0x5E05
#: Largest block that is turned as one; the last is padded with zeros.
_BLOCK = 4096
#: How many standard deviations of a coordinate of the sum fit on each side: beyond them it wraps.
_DEVIATIONS = 6.0
#: Draws of a rounding; each is refused with probability below e^-½.
_MOST_ROUNDINGS = 1000


def unsigned(bits: int) -> np.dtype:
    """The numbers in which sums modulo ``2**bits`` travel."""
    return np.dtype(np.uint16 if bits <= 16 else np.uint32)


@dataclass(frozen=True)
class NoiseShares:
    """Terms of a sum, the same at all clients and at the server.

    Attributes:
        noise_multiplier: σ of the sum of the shares that suffice (:mod:`~ffalora.privacy.skellam`).
        max_update_norm: C, of each client's update.
        width: numbers in an update.
        clients: how many bring a share.
        dropouts, colluders: how many of them may be missing from the sum, or tell the server their noise; σ holds
            whenever no more do.
        bits: the sum is known modulo ``2**bits``.
        seed: of the signs by which updates are turned; public.

    Raises:
        ValueError: nobody honest would be left, or too few bits for the noise.
    """

    noise_multiplier: float
    max_update_norm: float
    width: int
    clients: int
    dropouts: int
    colluders: int
    bits: int
    seed: int

    def __post_init__(self) -> None:
        if not (self.noise_multiplier > 0 and self.max_update_norm > 0 and self.width > 0):
            raise ValueError(
                f"noise_multiplier={self.noise_multiplier}, max_update_norm={self.max_update_norm} and "
                f"width={self.width} must be positive: without noise a sum of clients protects none of them"
            )
        if self.dropouts < 0 or self.colluders < 0 or self.sufficient < 1:
            raise ValueError(
                f"dropouts={self.dropouts} and colluders={self.colluders} leave {self.sufficient} of {self.clients} "
                "clients to bring the noise; at least one must be left: have more clients in a round, or lower them"
            )
        if not 0 < self.granularity < math.inf:
            raise ValueError(
                f"bits={self.bits} are too few for noise_multiplier={self.noise_multiplier:.4g} and {self.width} "
                "numbers: their sum would wrap whatever they are rounded to; raise bits"
            )

    @property
    def sufficient(self) -> int:
        """How many shares add up to σ."""
        return self.clients - self.dropouts - self.colluders

    @property
    def least(self) -> int:
        """With fewer shares the sum must not be shown."""
        return self.clients - self.dropouts

    @cached_property
    def block(self) -> int:
        """How many numbers are turned together, a power of two."""
        return min(_BLOCK, 1 << (self.width - 1).bit_length())

    @property
    def length(self) -> int:
        """Numbers of a share: ``width``, padded to whole blocks."""
        return -(-self.width // self.block) * self.block

    @property
    def bytes(self) -> int:
        """Of a share on the wire, without headers."""
        return self.length * unsigned(self.bits).itemsize

    @cached_property
    def granularity(self) -> float:
        """γ, what updates are rounded to multiples of: the least at which the sum fits; infinite where none is."""
        reach = 2.0 ** (self.bits - 1) / _DEVIATIONS

        def fits(gamma: float) -> bool:
            spread = self.clients * self.max_update_norm / gamma
            share = self._variance(gamma) / self.sufficient
            return reach**2 >= spread**2 / self.block + self.clients * (0.25 + share)

        coarse = self.max_update_norm * 2.0**-self.bits
        while not fits(coarse):
            coarse *= 2
            if coarse > self.max_update_norm:
                return math.inf
        fine = coarse / 2
        for _ in range(40):
            middle = math.sqrt(fine * coarse)
            fine, coarse = (fine, middle) if fits(middle) else (middle, coarse)
        return coarse

    @cached_property
    def l2_squared(self) -> int:
        """Δ₂² of the whole numbers: rounding is repeated until it holds (Kairouz et al. 2021, β = e^-½)."""
        return math.floor(self._l2_squared(self.granularity))

    @cached_property
    def variance(self) -> int:
        """Of a client's share of noise, in units of γ²."""
        return math.ceil(variance_for(self.noise_multiplier, self.l2_squared, self.length) / self.sufficient)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise of the shares that suffice, on each number of the sum."""
        return self.granularity * math.sqrt(self.variance * self.sufficient)

    def share(self, clipped: NDArray[np.float64], source: NoiseSource, client: int, step: int) -> NDArray[np.int64]:
        """What a client sends: its update with its share of noise, int64 ``[length]`` in 0 … 2**bits - 1.

        Args:
            clipped: float64 ``[width]``, no longer than C.
            source: of the client. client: of all that bring a share in this step, each its own.
            step: the same at all of them.
        """
        rounded = self._rounded(self._turned(clipped, step) / self.granularity, source, client, step)
        words = source.words(2 * self.length, client, step, _SHARE).reshape(-1, 2)
        return (rounded + skellam(words, self.variance)) % 2**self.bits

    def sum_of(self, shares: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
        """Shares added up modulo ``2**bits``: what secure aggregation shows."""
        total = np.zeros(self.length, dtype=np.int64)
        for share in shares:
            total = (total + share) % 2**self.bits
        return total

    def decoded(self, total: NDArray[np.int64], step: int) -> NDArray[np.float64]:
        """The noisy sum of updates, float64 ``[width]``, of a sum of shares."""
        half = 2 ** (self.bits - 1)
        centred = ((total + half) % 2**self.bits - half) * self.granularity
        return (_hadamard(centred.reshape(-1, self.block)).reshape(-1) * self._signs(step))[: self.width]

    def _turned(self, numbers: NDArray[np.float64], step: int) -> NDArray[np.float64]:
        """Signs, then a Hadamard matrix, block by block: the length stays, and each number is spread over its block."""
        padded = np.zeros(self.length)
        padded[: self.width] = numbers
        return _hadamard((padded * self._signs(step)).reshape(-1, self.block)).reshape(-1)

    def _signs(self, step: int) -> NDArray[np.float64]:
        bits = np.unpackbits(raw_words(-(-self.length // 64), self.seed, step, _SIGNS).view(np.uint8))
        return 1.0 - 2.0 * bits[: self.length].astype(np.float64)

    def _rounded(self, numbers: NDArray[np.float64], source: NoiseSource, client: int, step: int) -> NDArray[np.int64]:
        """To a whole number above or below, at random so that the mean is exact, until the length is within bounds."""
        floor = np.floor(numbers)
        for draw in range(_MOST_ROUNDINGS):
            words = source.words(self.length, client, step, _ROUNDING + (draw << 16))
            rounded = (floor + ((words >> np.uint64(11)) * 2.0**-53 < numbers - floor)).astype(np.int64)
            if int(rounded @ rounded) <= self.l2_squared:
                return rounded
        raise ValueError(f"client {client}: its update is longer than max_update_norm={self.max_update_norm}; clip it")

    def _l2_squared(self, gamma: float) -> float:
        norm, root = self.max_update_norm / gamma, math.sqrt(self.length)
        return min(norm**2 + self.length / 4 + norm + root / 2, (norm + root) ** 2)

    def _variance(self, gamma: float) -> float:
        return variance_for(self.noise_multiplier, self._l2_squared(gamma), self.length)


def _hadamard(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row ``[2^k]`` times the symmetric Hadamard matrix of unit length: its own inverse."""
    size, half = rows.shape[1], 1
    while half < size:
        pairs = rows.reshape(len(rows), -1, 2, half)
        rows = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2).reshape(len(rows), size)
        half *= 2
    return np.asarray(rows / math.sqrt(size), dtype=np.float64)
