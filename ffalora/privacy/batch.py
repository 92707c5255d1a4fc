"""The batch that spends a budget well.

With σ the noise multiplier that T steps of expected batch B need for ε, the mean of all steps carries noise of
``ν = σ/(B√T)`` in each number, in units of the clipping norm. The least that ε allows is one step on all n samples,
``σ₁/n``; a batch's *efficiency* is ``(σ₁/n)/ν``. Fewer, larger steps are the more efficient ones and cost more samples.
The rule, chosen on movie reviews and tweets: the smallest batch n/2^k of efficiency 0.85.
"""

from __future__ import annotations

import math
from functools import cache

from .accountants import noise_multiplier_for
from .accounting import PrivacyLedger

ENOUGH, HALVINGS = 0.85, 5


def efficiency(
    samples: int,
    target_epsilon: float,
    delta: float,
    batch: float,
    steps: int,
    accountant: str = "rdp",
    group: int = 1,
    trials: float = 1.0,
) -> float:
    """Least noise that ε allows over the noise of this batch, both on the mean of all steps: in (0, 1].

    Args:
        samples: n, of one client (or its users, where they are drawn); batch: expected, at most n; steps: T.
        accountant: of both; Rényi's is quick, and the ratio is the same to 0.01.
        group: most samples of a user, where these are drawn.
        trials: of which, on average, the run is one, where ε is that of a private choice.

    Raises:
        ValueError: a target that no noise meets, or values out of range.
    """
    batch = min(batch, samples)
    sigma = _sigma(target_epsilon, delta, batch / samples, steps, accountant, group, trials)
    whole = _sigma(target_epsilon, delta, 1.0, 1, accountant, group, trials)
    return _efficiency(whole, samples, sigma, batch, steps)


def efficiency_of(ledger: PrivacyLedger, target_epsilon: float) -> float:
    """The same of all steps of a ledger whose noise is for this target, by its own accountant, sampling and ``prior``.

    Raises:
        ValueError: as for :func:`efficiency`.
    """
    terms = target_epsilon, ledger.delta, 1.0, 1, ledger.accountant, "poisson", ledger.prior, ledger.group
    whole, batch = noise_multiplier_for(*terms, ledger.trials), ledger.expected_batch
    return _efficiency(whole, ledger.dataset_size, ledger.noise_multiplier, batch, ledger.max_steps)


def _efficiency(whole: float, samples: int, sigma: float, batch: float, steps: int) -> float:
    return min(1.0, (whole / samples) / (sigma / (batch * math.sqrt(steps))))


def sensible_batch(
    samples: int,
    target_epsilon: float,
    delta: float,
    steps: int,
    most: int | None = None,
    group: int = 1,
    trials: float = 1.0,
) -> int:
    """The smallest of n, n/2, n/4, … that ε is spent well with; ``most`` or less where the largest of them that time
    allows is smaller yet. Arguments as in :func:`efficiency`.
    """
    batches = [math.ceil(samples / 2**halvings) for halvings in range(HALVINGS)]
    most, chosen = samples if most is None else max(1, most), batches[0]
    for batch in batches[1:]:
        terms = target_epsilon, delta, batch, steps, "rdp", group, trials
        if chosen <= most and efficiency(samples, *terms) < ENOUGH:
            break
        chosen = batch
    return min(chosen, most)


@cache
def _sigma(
    target_epsilon: float, delta: float, rate: float, steps: int, accountant: str, group: int, trials: float
) -> float:
    return noise_multiplier_for(target_epsilon, delta, rate, steps, accountant, group=group, trials=trials)
