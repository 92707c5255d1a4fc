"""ε of one sample where whole users are protected: it changes a user's clipped sum, and need not empty it.

Where users are drawn, each user's sum is clipped to C, and ε is of the user's removal, which moves the noisy sum by at
most C. Without one of its samples a user's sum is another vector of length at most C, up to 2C away: one unit is
replaced. Two bounds hold, and the smaller one is taken:

* every step is a Gaussian mechanism of sensitivity 2C, hence of noise multiplier σ/2, without amplification;
* a replacement is a removal and its reverse. If a removal is (ε₁, δ/2)- and also (ε₂, δ·e^(-ε₁)/2)-private, then for
  every set S ``P(S) ≤ e^ε₁·Q(S) + δ/2 ≤ e^ε₁·(e^ε₂·R(S) + δ·e^(-ε₁)/2) + δ/2 = e^(ε₁+ε₂)·R(S) + δ``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from .accountants import epsilon_of
from .spent import Spent

#: Below it accountants are not asked: the second bound is then far above the first.
_LEAST_DELTA = 1e-30


def sample_epsilon(history: Iterable[Spent], delta: float, accountant: str = "pld") -> float:
    """ε of leaving out one sample of a user, after a history whose unit is the user.

    Args:
        history: steps that protect users. In those with a ``group`` each sample is clipped by itself, and one moves the
            sum by C.
        delta: δ, also of the result.
        accountant: 'pld', 'prv' or 'rdp'.

    Raises:
        ValueError: as :func:`~ffalora.privacy.accountants.epsilon_of`.
    """
    history = [Spent(*part) for part in history]
    full = [part._replace(group=1) if part.group > 1 else _replaced(part) for part in history]
    return min(epsilon_of(full, delta, accountant), _there_and_back(history, delta, accountant))


def _replaced(part: Spent) -> Spent:
    """Steps of sensitivity 2C in which everybody takes part; those counted so already stay what they are."""
    return part._replace(sampling="full", adjacency="replace") if part.sampling == "poisson" else part


def _there_and_back(history: list[Spent], delta: float, accountant: str) -> float:
    first = epsilon_of(history, delta / 2, accountant)
    rest = delta / 2 * math.exp(-first)
    return first + epsilon_of(history, rest, accountant) if rest >= _LEAST_DELTA else math.inf
