"""The best factor for a run: coefficients that make prefix sums least noisy at a given privacy, and the band to use.

All that is searched for is computed from public numbers: steps, sampling rate, target.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.signal import lfilter

from .accountants import epsilon_of, least_noise, noise_multiplier_for
from .correlation import Correlation, rational, sum_of_columns
from .spent import Spent

#: Buffers of a BLT; McMahan, Xu, Zhang (arXiv:2408.08868) find four to be enough for thousands of steps.
BUFFERS = 4
#: Coefficients are rounded to as many decimals: what is lost is not seen, and every machine finds the same.
_DECIMALS = 5
#: Orders of the moments by which bands are compared.
_ORDERS = (1.5, 2, 3, 4, 5, 6, 8, 10, 13, 17, 22, 29, 38, 50, 65, 85, 110, 150, 200)


def banded_factor(steps: int, band: int, separation: int | None = None) -> Correlation:
    """The banded factor of least mean square prefix error for columns of length 1.

    Args:
        steps: T, of the run; band: b; separation: see :class:`~ffalora.privacy.correlation.Correlation`, by default b.

    Raises:
        ValueError: a band below 1, or longer than the run or the separation.
    """
    if band < 1:
        raise ValueError(f"band must be at least 1, got {band}")
    start = np.cumprod(1.0 - 0.5 / np.arange(1, band))  # the square root of 1/(1-x) (Kalinin and Lampert, 2024)
    found = Correlation("banded-mf", steps, separation or band, tuple(start))  # refuses before anything is searched
    if band > 1:
        weights = minimize(_banded_loss, start, (steps,), jac=True, method="L-BFGS-B", options={"ftol": 1e-13}).x
        found = Correlation("banded-mf", steps, found.separation, _rounded(weights))
    return found


def blt_factor(steps: int, separation: int, buffers: int = BUFFERS) -> Correlation:
    """The buffered linear Toeplitz factor of least mean square prefix error for a sensitivity of 1 under these
    participations.

    Args:
        steps: T, of the run; separation: steps between two of a record; buffers: how many.

    Raises:
        ValueError: a value below 1.
    """
    if min(steps, separation, buffers) < 1:
        raise ValueError(f"steps, separation and buffers must be at least 1, got {steps}, {separation}, {buffers}")
    far = np.geomspace(0.5, 1.0 / (steps + 1), buffers)
    start = np.concatenate([np.log(1.0 / far - 1.0), np.full(buffers, -1.0)])
    found = minimize(_blt_loss, start, (steps, separation), method="L-BFGS-B", options={"ftol": 1e-13}).x
    weights, decays = _blt_of(found)
    return Correlation("blt", steps, separation, _rounded(weights), _rounded(np.minimum(decays, 1 - 10.0**-_DECIMALS)))


def choose_noise(
    mechanism: str,
    steps: int,
    sample_rate: float,
    delta: float,
    target_epsilon: float | None,
    noise_multiplier: float | None,
    band: int | None = None,
    accountant: str = "pld",
    prior: tuple[Spent, ...] = (),
) -> tuple[Correlation, float]:
    """The correlation of a run, and its noise multiplier: the one given, or that which meets the target.

    Args:
        mechanism: 'banded-mf' or 'blt'.
        steps: of all rounds together; sample_rate: expected batch over records.
        delta, accountant, prior: as for :func:`~ffalora.privacy.accountants.noise_multiplier_for`.
        band: of banded-mf; None tries many and takes the one of least prefix error.

    Raises:
        ValueError: a band that is longer than the run or than there are batches in the data, or one that is needed and
            not given.
    """
    most = max(1, int(1.0 / sample_rate + 1e-9))
    if mechanism == "blt":
        whole = blt_factor(steps, most)
        return whole, _noise_for(whole, sample_rate, delta, target_epsilon, noise_multiplier, accountant, prior)
    if band is None and target_epsilon is None:
        raise ValueError(
            f"noise_multiplier={noise_multiplier} does not say which band is best: give band as well (1 … "
            f"{min(steps, most)}), or a target_epsilon"
        )
    if band is not None and not 1 <= band <= min(steps, most):
        raise ValueError(
            f"band={band} must lie in 1 … {min(steps, most)}: the run has {steps} steps, and the data {most} batches; "
            "shorten it, or lower the batch size"
        )
    if band is None and target_epsilon is not None:
        left = target_epsilon - epsilon_of(prior, delta, accountant)
        band = _best_band(min(steps, most), steps, sample_rate, max(left, 0.05 * target_epsilon), delta)
    banded = banded_factor(steps, band or 1)
    return banded, _noise_for(banded, sample_rate, delta, target_epsilon, noise_multiplier, accountant, prior)


def _noise_for(
    found: Correlation,
    sample_rate: float,
    delta: float,
    target_epsilon: float | None,
    noise_multiplier: float | None,
    accountant: str,
    prior: tuple[Spent, ...],
) -> float:
    if target_epsilon is None:
        return float(noise_multiplier or 0.0)
    return noise_multiplier_for(
        target_epsilon, delta, found.release_rate(sample_rate), -(-found.steps // found.period), accountant, prior=prior
    )


def _best_band(most: int, steps: int, sample_rate: float, target_epsilon: float, delta: float) -> int:
    """The band up to ``most`` of least prefix error at the target, by a few Rényi moments: they find the band that an
    exact accountant finds, in a hundredth of the time.
    """
    from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

    def error(band: int) -> float:
        found = banded_factor(steps, band)

        def excess(sigma: float) -> float:
            moments = compute_rdp(
                q=found.release_rate(sample_rate), noise_multiplier=sigma, steps=-(-steps // band), orders=_ORDERS
            )
            spent = get_privacy_spent(orders=_ORDERS, rdp=moments, delta=delta)[0]
            return math.log(max(spent, 1e-300) / target_epsilon)

        sigma = least_noise(excess)
        return math.inf if sigma is None else sigma * found.prefix_error()

    sizes = {size for power in range(12) for size in (2**power, 3 * 2**power)} | {most}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of a best order at the end of the list, and of log(0) at q = 1
        return min(sorted(size for size in sizes if size <= most), key=error)


def _banded_loss(weights: NDArray[np.float64], steps: int) -> tuple[float, NDArray[np.float64]]:
    """log of (squared column length · mean square prefix error), and its gradient.

    Prefix sums have the coefficients e of ``1/(c(x)(1-x))``, whose derivative by ``c_k`` is ``-x^k/(c(x)²(1-x))``.
    """
    c, share = np.concatenate([[1.0], weights]), 1.0 - np.arange(steps) / steps
    denominator = np.convolve(c, [1.0, -1.0])
    impulse = np.zeros(steps)
    impulse[0] = 1.0
    e, slope = lfilter([1.0], denominator, impulse), lfilter([1.0], np.convolve(c, denominator), impulse)
    error, length = float(share @ e**2), float(c @ c)
    down = np.array([-2.0 * (share[k:] * e[k:]) @ slope[: steps - k] for k in range(1, len(c))])
    return math.log(error * length), down / error + 2.0 * weights / length


def _blt_loss(values: NDArray[np.float64], steps: int, separation: int) -> float:
    """log of (squared sensitivity · mean square prefix error)."""
    weights, decays = _blt_of(values)
    numerator, denominator = rational(weights, decays)
    impulse = np.zeros(steps)
    impulse[0] = 1.0
    c = lfilter(numerator, denominator, impulse)
    e = lfilter(denominator, np.convolve(numerator, [1.0, -1.0]), impulse)
    changed, share = sum_of_columns(c, separation), 1.0 - np.arange(steps) / steps
    return math.log(float(changed @ changed) * float(share @ e**2))


def _blt_of(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights that are positive and sum to less than 1, and decays between 0 and 1, of any real numbers."""
    decays, sizes = np.split(values, 2)
    grown = np.exp(sizes)
    return grown / (1.0 + grown.sum()), 1.0 / (1.0 + np.exp(-decays))


def _rounded(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.round(np.maximum(values, 0.0), _DECIMALS).tolist())
