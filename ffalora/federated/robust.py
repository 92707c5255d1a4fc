"""Averages that a few hostile clients cannot move far: what a server that does not trust its clients puts in the place
of the weighted mean.

Every function is ``(start [P], rows [C,P], weights [C]) -> [P]``, float32, summed in float64: ``start`` is where the
clients began the round, ``rows`` where they say that they ended, ``weights`` their shares (float64, summing to 1). The
order statistics are of clients, not of samples: all of them but :func:`norm_bounded_mean` leave weights aside, as
published, since a weight is what a client says of itself.
"""

from __future__ import annotations

import math
import warnings
from functools import partial

import torch
from torch import Tensor

from ..config import ConfigError
from ..config.sections import FederationConfig
from .strategies.base import Mean


def coordinate_median(start: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """The median of each column; of an even number of clients, the mean of the middle two (Yin et al.,
    "Byzantine-Robust Distributed Learning", ICML 2018, definition 1).
    """
    return trimmed_mean(start, rows, weights, hostile=(len(rows) - 1) // 2)


def trimmed_mean(start: Tensor, rows: Tensor, weights: Tensor, *, hostile: int) -> Tensor:
    """The mean of each column without its ``hostile`` largest and ``hostile`` smallest values (Yin et al. 2018,
    definition 2).

    Raises:
        ConfigError: nobody would be left.
    """
    count = len(rows)
    if count <= 2 * hostile:
        raise ConfigError(
            f"federation.robust_mean=trimmed-mean: {count} clients answered, of whom {hostile} largest and {hostile} "
            "smallest values are left out; set federation.hostile_clients below half of the clients of a round"
        )
    ordered = rows.double().sort(dim=0).values
    return ordered[hostile : count - hostile].mean(0).to(rows.dtype)


def krum(start: Tensor, rows: Tensor, weights: Tensor, *, hostile: int) -> Tensor:
    """The one row whose ``C - hostile - 2`` nearest others are nearest to it (Blanchard et al., "Machine Learning with
    Adversaries", NeurIPS 2017, section 4).

    Raises:
        ConfigError: fewer clients than ``2 * hostile + 3``, for which nothing is proven.
    """
    return rows[_by_krum_score(rows, hostile)[0]].clone()


def multi_krum(start: Tensor, rows: Tensor, weights: Tensor, *, hostile: int) -> Tensor:
    """The mean of the ``C - hostile`` rows of least Krum score (Blanchard et al. 2017, section 4, with
    m = n - f).

    Raises:
        ConfigError: as :func:`krum`.
    """
    kept = _by_krum_score(rows, hostile)[: len(rows) - hostile]
    return rows[kept].double().mean(0).to(rows.dtype)


def norm_bounded_mean(start: Tensor, rows: Tensor, weights: Tensor, *, bound: float | None = None) -> Tensor:
    """The weighted mean of updates, each shortened to ``bound`` (Sun et al., "Can You Really Backdoor Federated
    Learning?", 2019, section 4.1). Without a bound it is the median of this round's norms.
    """
    base = start.double()
    updates = rows.double() - base
    largest = updates.abs().amax(1, keepdim=True).clamp(min=1e-300)
    norms = largest * (updates / largest).norm(dim=1, keepdim=True)  # also of rows whose squares overflow
    limit = float(norms.quantile(0.5)) if bound is None else bound
    factors = torch.where(norms > limit, limit / norms.clamp(min=1e-300), torch.ones_like(norms))
    shares = weights.to(rows.device, torch.float64)
    return (base + shares @ (updates * factors)).to(rows.dtype)


#: What ``federation.robust_mean`` may be.
ROBUST_MEANS = ("median", "trimmed-mean", "krum", "multi-krum", "norm-bounded")


def fewest_clients(name: str, hostile: int) -> int:
    """How many clients have to answer a round for the average called ``name`` to mean anything."""
    return {"trimmed-mean": 2 * hostile + 1, "krum": 2 * hostile + 3, "multi-krum": 2 * hostile + 3}.get(name, 1)


def are_enough(federation: FederationConfig, answers: int) -> bool:
    """Whether so many answers can be averaged as ``federation`` says; of fewer a round makes nothing, and warns."""
    name = federation.robust_mean
    least = 1 if name is None else fewest_clients(name, federation.hostile_clients)
    if 0 < answers < least:
        warnings.warn(
            f"{answers} clients answered a round, federation.robust_mean={name} needs {least}: it changes nothing",
            stacklevel=2,
        )
    return name is None or answers >= least


def robust_mean(name: str, hostile: int, bound: float | None = None) -> Mean:
    """The average called ``name``, of at least :func:`fewest_clients` answers.

    Args:
        name: one of ``ROBUST_MEANS``.
        hostile: the number of clients of a round that may be hostile (``trimmed-mean``, ``krum``, ``multi-krum``).
        bound: the largest norm of a client's update (``norm-bounded``); None takes the median of each round's.

    Raises:
        ConfigError: there is none of this name, or ``hostile`` or ``bound`` is no count or norm.
    """
    if hostile < 0:
        raise ConfigError(f"federation.hostile_clients={hostile}: give the number of clients that may be hostile")
    if bound is not None and not (0 < bound < math.inf):
        raise ConfigError(f"federation.norm_bound={bound}: give a positive norm, or leave it out")
    made: dict[str, Mean] = {
        "median": coordinate_median,
        "trimmed-mean": partial(trimmed_mean, hostile=hostile),
        "krum": partial(krum, hostile=hostile),
        "multi-krum": partial(multi_krum, hostile=hostile),
        "norm-bounded": partial(norm_bounded_mean, bound=bound),
    }
    if name not in made:
        raise ConfigError(f"federation.robust_mean={name!r}: choose one of {', '.join(ROBUST_MEANS)}")
    return made[name]


def _by_krum_score(rows: Tensor, hostile: int) -> Tensor:
    """Numbers of the rows, the least Krum score first; of equal scores the lower number first."""
    count = len(rows)
    if count < 2 * hostile + 3:
        raise ConfigError(
            f"federation.robust_mean=krum: {count} clients answered, {2 * hostile + 3} are needed for "
            f"federation.hostile_clients={hostile}; lower it, or have more clients in a round"
        )
    exact = rows.double()
    largest = exact.abs().max().clamp(min=1e-300)
    squares = torch.cdist(exact / largest, exact / largest, compute_mode="donot_use_mm_for_euclid_dist").square()
    nearest = squares.fill_diagonal_(math.inf).sort(dim=1).values[:, : count - hostile - 2]
    return nearest.sum(1).argsort(stable=True)
