"""Which records a step takes. Every draw is a pure function of (seed, client, step) or comes from the operating system.

No generator is carried from step to step, so a resumed run, clients served one after another, all in one pass, and a
real federation draw the same records. Draws use the raw 64-bit words of Philox, whose stream numpy guarantees, and
compare integers.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
_POISSON, _SHUFFLE, _FIXED, _OF_USER, _BOUND = 1, 2, 3, 4, 5


class Draw(Protocol):
    """Poisson sampling: each of ``n`` records independently with probability ``rate``. Returns sorted indices, int64.

    ``some`` draws ``most`` of the ``n`` records of a user, each set as likely as any other, from what belongs to this
    user alone. ``secure`` says whether draws come from a cryptographic generator.
    """

    secure: ClassVar[bool]

    def __call__(self, client_id: int, step: int, n: int, rate: float) -> Indices: ...

    def some(self, client_id: int, step: int, user: int, n: int, most: int) -> Indices: ...


@dataclass(frozen=True)
class SeededDraw:
    """Draws that can be repeated: see :func:`poisson_draw`. Whoever knows the seed knows who was drawn."""

    seed: int
    secure: ClassVar[bool] = False

    def __call__(self, client_id: int, step: int, n: int, rate: float) -> Indices:
        return poisson_draw(self.seed, client_id, step, n, rate)

    def some(self, client_id: int, step: int, user: int, n: int, most: int) -> Indices:
        return _first(raw_words(n, self.seed, client_id, step, _OF_USER, user), most)


@dataclass(frozen=True)
class SystemDraw:
    """Draws from the operating system's cryptographic generator, never the same twice, whatever the client and step.

    Attributes:
        key: for processes that have to draw alike: 32 bytes of that generator, exchanged among them and never written.
            A draw is then SHAKE-256 (FIPS 202) of key, client and step (of a user's records: and its number), each step
            drawn once.
    """

    key: bytes | None = field(default=None, repr=False)
    secure: ClassVar[bool] = True

    def __call__(self, client_id: int, step: int, n: int, rate: float) -> Indices:
        _check(n, rate)
        return _below(self._words(n, client_id, step), rate)

    def some(self, client_id: int, step: int, user: int, n: int, most: int) -> Indices:
        return _first(self._words(n, client_id, step, user), most)

    def _words(self, n: int, *named: int) -> NDArray[np.uint64]:
        if self.key is None:
            words = os.urandom(8 * n)
        else:  # lists of other lengths never collide, nor do those of one
            named_bytes = b"".join(int(number).to_bytes(8, "little") for number in named)
            words = hashlib.shake_256(self.key + named_bytes).digest(8 * n)
        return np.frombuffer(words, dtype=np.uint64)


def poisson_draw(seed: int, client_id: int, step: int, n: int, rate: float) -> Indices:
    """Poisson sample of step ``step``: each of n records independently with probability ``rate``.

    Args:
        seed: of the run, 0 … 2⁶⁴-1.
        client_id: persistent id, 0 … 2⁶⁴-1.
        step: the client's logical step over its whole life.
        n: number of records.
        rate: probability, in [0, 1]; realised to within 2⁻⁵³, never below it.

    Returns:
        sorted indices into 0 … n-1, int64; may be empty.
    """
    _check(n, rate)
    return _below(raw_words(n, seed, client_id, step, _POISSON), rate)


def shuffled_batches(seed: int, client_id: int, step: int, n: int, batch_size: int) -> Indices:
    """The batch of step ``step`` when epochs run through all n records in a fresh order each (non-private training).

    The last batch of an epoch is smaller when ``batch_size`` does not divide n. A private run that uses this gets no
    amplification (``sampling='shuffled'``).
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"n and batch_size must be at least 1, got {n} and {batch_size}")
    epoch, position = divmod(step, -(-n // batch_size))
    order = np.argsort(raw_words(n, seed, client_id, epoch, _SHUFFLE), kind="stable").astype(np.int64)
    return order[position * batch_size : (position + 1) * batch_size]


def fixed_size_draw(seed: int, client_id: int, step: int, n: int, batch_size: int) -> Indices:
    """``batch_size`` distinct records, drawn afresh each step (``sampling='without-replacement'``)."""
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size must lie in 1 … n={n}, got {batch_size}")
    return _first(raw_words(n, seed, client_id, step, _FIXED), batch_size)


def records_of(
    users: Indices, owner: NDArray[np.integer], most: int, some: Callable[[int, int, int], Indices]
) -> Indices:
    """The records of some users, at most ``most`` of each.

    Args:
        users: which, numbers into the sorted distinct values of ``owner``.
        owner: ``[n]``, whose each record is.
        most: k, at least 1.
        some: takes the number of a user, how many records it has and k, and draws k of them (``Draw.some``).

    Returns:
        sorted positions into ``owner``, int64.
    """
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}: a user without records takes no part")
    _, numbers, counts = np.unique(owner, return_inverse=True, return_counts=True)
    order, ends = np.argsort(numbers, kind="stable").astype(np.int64), np.cumsum(counts)
    found = [np.empty(0, dtype=np.int64)]
    for user in users.tolist():
        own = order[ends[user] - counts[user] : ends[user]]
        found.append(own if len(own) <= most else own[some(user, len(own), most)])
    return np.sort(np.concatenate(found))


def bounded_records(users: NDArray[np.integer], starts: NDArray[np.integer], most: int, seed: int) -> Indices:
    """Records of which nobody owns more than ``most``, also where some have several owners.

    Records are looked at in an order drawn from ``seed``, and one is kept where each of its owners has room for it
    (Ganesh et al. 2025). What is kept follows from who owns what alone, never from what records say.

    Args:
        users: numbers of the owners, record by record; starts: ``[n+1]``, where each record's begin.

    Returns:
        sorted indices into 0 … n-1, int64.
    """
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}: a user without records takes no part")
    held = np.zeros(int(users.max(initial=-1)) + 1, dtype=np.int64)
    kept = []
    for record in np.argsort(raw_words(len(starts) - 1, seed, _BOUND), kind="stable").tolist():
        owners = users[starts[record] : starts[record + 1]]
        if (held[owners] < most).all():
            held[owners] += 1
            kept.append(record)
    return np.array(sorted(kept), dtype=np.int64)


def _check(n: int, rate: float) -> None:
    if n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must lie in [0, 1], got {rate}: the expected batch must not exceed the {n} records")


def _below(words: NDArray[np.uint64], rate: float) -> Indices:
    threshold = np.uint64(math.ceil(rate * 2.0**53))
    return np.flatnonzero((words >> np.uint64(11)) < threshold).astype(np.int64)


def _first(words: NDArray[np.uint64], count: int) -> Indices:
    """Where the ``count`` smallest words are, sorted."""
    return np.sort(np.argsort(words, kind="stable")[:count]).astype(np.int64)


def raw_words(n: int, *named: int) -> NDArray[np.uint64]:
    """n raw words of a Philox stream that belongs to these numbers alone (fixed widths: no two lists collide)."""
    if any(not 0 <= number < 2**64 for number in named):
        raise ValueError(f"seed, client_id and step must lie in 0 … 2**64 - 1, got {named[:3]}")
    halves = [half for number in named for half in (int(number) & 0xFFFFFFFF, int(number) >> 32)]
    return np.random.Philox(np.random.SeedSequence(halves)).random_raw(n)
