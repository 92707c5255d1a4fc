"""How fast a training loss falls: two laws fitted to it, with intervals and an honest measure of fit.

    power:        ``loss(t) = limit + amplitude · t^(-rate)``
    exponential:  ``loss(t) = limit + amplitude · exp(-rate·t)``

Stochastic gradient methods with a decreasing step have power laws on convex problems (Bottou, Curtis, Nocedal 2018,
section 4); strongly convex problems with a constant step fall exponentially towards a floor set by the noise. Intervals
are those of linearised least squares, by Student's t with the residuals' degrees of freedom. They assume residuals that
are independent; ``autocorrelation`` says how far that is from true.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.stats import t as student

LAWS: dict[str, Callable] = {
    "power": lambda t, limit, amplitude, rate: limit + amplitude * t**-rate,
    "exponential": lambda t, limit, amplitude, rate: limit + amplitude * np.exp(-rate * t),
}
_LEAST_POINTS = 5
_BOUNDS = ([-np.inf, -np.inf, 1e-6], [np.inf, np.inf, 1e3])
_RATES = np.geomspace(0.02, 50.0, 40)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval; infinite where the data does not determine it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Fit:
    """A law fitted to a curve.

    Attributes:
        law: 'power' or 'exponential'.
        limit, amplitude, rate: its parameters.
        r2: share of the variance that the law explains, ``1 - Σresidual²/Σ(loss - mean)²``.
        rmse: root of the mean squared residual.
        aicc: Akaike's criterion with the correction for few points; differences between laws of one curve count, the
            smaller is better.
        autocorrelation: of neighbouring residuals; well above 0 the intervals are too narrow.
    """

    law: str
    limit: Estimate
    amplitude: Estimate
    rate: Estimate
    r2: float
    rmse: float
    aicc: float
    autocorrelation: float

    @property
    def determined(self) -> bool:
        """Whether the loss falls, at a rate whose interval is finite and excludes 0: else the curve does not show the
        law.
        """
        return self.amplitude.value > 0 and math.isfinite(self.rate.high) and self.rate.low > 0


def fit_law(law: str, t: Sequence[float], loss: Sequence[float]) -> Fit | None:
    """Least squares of one law; None where the iteration does not settle.

    Args:
        law: a key of :data:`LAWS`.
        t: steps or rounds, positive; loss: at these.

    Raises:
        ValueError: an unknown law, fewer than five points, or numbers that are not finite (or not positive for ``t``).
    """
    if law not in LAWS:
        raise ValueError(f"law must be one of {', '.join(LAWS)}, got {law!r}")
    x, y = np.asarray(t, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    if len(x) != len(y) or len(x) < _LEAST_POINTS:
        raise ValueError(f"loss must hold at least {_LEAST_POINTS} points, one for each t; got {len(y)} for {len(x)}")
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (x > 0).all()):
        raise ValueError("t must be positive, and t and loss finite; leave diverged rounds out")
    unit = float(x.max()) if law == "exponential" else 1.0  # rates of order one, whatever t counts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)
        try:
            found, covariance = curve_fit(
                LAWS[law], x / unit, y, p0=_start(law, x / unit, y), bounds=_BOUNDS, x_scale="jac", maxfev=500
            )
        except RuntimeError:
            return None
    residuals = y - LAWS[law](x / unit, *found)
    margins = student.ppf(0.975, len(x) - 3) * np.sqrt(np.diag(covariance))
    limit, amplitude, rate_found = (
        Estimate(float(v / u), float((v - m) / u), float((v + m) / u))
        for v, m, u in zip(found, margins, (1.0, 1.0, unit), strict=True)
    )
    return Fit(law, limit, amplitude, rate_found, *_goodness(y, residuals))


def fit_curve(t: Sequence[float], loss: Sequence[float]) -> list[Fit]:
    """Both laws, the better one (by AICc) first; laws that did not settle are left out. Errors as :func:`fit_law`."""
    fits = [fit for law in LAWS if (fit := fit_law(law, t, loss)) is not None]
    return sorted(fits, key=lambda fit: fit.aicc)


def _start(law: str, x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """The best of a grid of rates, each with the limit and amplitude that linear least squares gives it."""
    best, least = (float(y[-1]), 0.0, 1.0), math.inf
    for rate in _RATES:
        columns = np.stack([np.ones_like(x), LAWS[law](x, 0.0, 1.0, rate)], axis=1)
        (limit, amplitude), *_ = np.linalg.lstsq(columns, y, rcond=None)
        error = float(np.square(y - columns @ (limit, amplitude)).sum())
        if error < least:
            best, least = (float(limit), float(amplitude), float(rate)), error
    return best


def _goodness(y: np.ndarray, residuals: np.ndarray) -> tuple[float, float, float, float]:
    """r2, rmse, aicc (three parameters and the variance), and the lag-one autocorrelation of the residuals."""
    n, parameters, error = len(y), 4, float(np.square(residuals).sum())
    spread = float(np.square(y - y.mean()).sum())
    r2 = 1.0 - error / spread if spread else math.nan
    likelihood = n * math.log(max(error / n, 1e-300))
    correction = 2 * parameters * (parameters + 1) / (n - parameters - 1) if n > parameters + 1 else math.inf
    lagged = float((residuals[1:] * residuals[:-1]).sum()) / error if error else 0.0
    return r2, math.sqrt(error / n), likelihood + 2 * parameters + correction, lagged
