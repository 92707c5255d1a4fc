"""Who holds what: splitting sample numbers among clients, the same from a seed on every machine.

Every sample goes to at most one client. Draws come from NumPy's counter-based Philox generator.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..data.spelling import name_of
from ..data.users import Owners

Kind = Literal["iid", "labels", "dirichlet", "quantity", "column"]
_MOST_DRAWS = 200

logger = logging.getLogger(__name__)


class PartitionError(ValueError):
    """A partition that cannot be made as configured."""


@dataclass(frozen=True)
class Partition:
    """``indices[c]`` (int64, ascending) are the samples of client ``names[c]``; ``total`` counts all samples.

    ``owners`` says whose each sample is, where users are protected.
    """

    names: tuple[str, ...]
    indices: tuple[np.ndarray, ...]
    total: int
    owners: Owners | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.indices)

    def __getitem__(self, client: int) -> np.ndarray:
        return self.indices[client]

    @property
    def sizes(self) -> np.ndarray:
        """Samples per client, int64 [C]."""
        return np.array([len(part) for part in self.indices], dtype=np.int64)


def make_partition(
    kind: Kind,
    *,
    labels: Sequence[Any] | np.ndarray,
    clients: int | None = None,
    seed: int = 0,
    proportions: Sequence[Sequence[float]] | None = None,
    beta: float = 0.5,
    fractions: Sequence[float] | None = None,
    column: Sequence[Any] | None = None,
    min_samples: int = 1,
) -> Partition:
    """The partition a configuration asks for by name.

    kind       "iid": equal shares; "labels": ``proportions``; "dirichlet": ``beta``; "quantity": ``fractions``, or the
               c-th client holds 1/c of what the first does; "column": one client per value of ``column``
    labels     class numbers of all samples, [samples]; their number alone matters to iid, quantity and column
    clients    number of clients; may be left out where proportions, fractions or the column say it

    Raises ``PartitionError`` that names the parameter, or the client left with fewer than ``min_samples``.
    """
    samples = len(labels)
    if min_samples < 1:
        raise PartitionError(f"min_samples={min_samples}: must be at least 1, a client needs data")
    if kind in ("labels", "dirichlet") and np.asarray(labels).dtype.kind == "f":
        raise PartitionError(
            f"kind={kind!r} needs classes, but labels are {np.asarray(labels).dtype}; use iid, quantity or column"
        )
    if kind == "labels":
        if proportions is None:
            raise PartitionError("proportions is missing; give each client's class mix, e.g. [[0.1, 0.9], [0.9, 0.1]]")
        _agree(clients, len(proportions), "clients.proportions is for")
        made = by_labels(labels, proportions, seed)
    elif kind == "quantity" and fractions is not None:
        _agree(clients, len(fractions), "clients.quantities is for")
        made = by_quantity(samples, fractions, seed)
    elif kind == "column":
        if column is None:
            raise PartitionError("column is missing; name the column whose values are the clients")
        made = by_column(column)
        _agree(clients, len(made), "clients.column names")
    else:
        if clients is None or clients < 1:
            raise PartitionError(f"clients={clients}: give the number of clients, at least 1")
        if kind == "iid":
            made = iid(samples, clients, seed)
        elif kind == "dirichlet":
            made = dirichlet(labels, clients, beta, seed, min_samples=min_samples)
        elif kind == "quantity":
            made = by_quantity(samples, (1 + np.arange(clients)) ** -1.0, seed)
        else:
            raise PartitionError(f"kind={kind!r}: choose iid, labels, dirichlet, quantity or column")
    check_sizes(made, min_samples)
    return made


def iid(samples: int, clients: int, seed: int) -> Partition:
    """Equal shares (to within one sample) of a random order."""
    return by_quantity(samples, np.ones(clients), seed)


def by_quantity(samples: int, shares: Sequence[float] | np.ndarray, seed: int) -> Partition:
    """Shares of a random order in proportion to ``shares`` (positive; their sum does not matter)."""
    weights = np.asarray(shares, dtype=np.float64)
    if weights.ndim != 1 or not len(weights) or not np.isfinite(weights).all() or (weights <= 0).any():
        raise PartitionError(f"fractions={weights.tolist()}: must be positive numbers, one per client")
    order = _generator(seed).permutation(samples)
    cuts = np.cumsum(_apportion(samples, weights / weights.sum()))[:-1]
    return _partition(np.split(order, cuts), samples)


def by_labels(labels: Sequence[Any] | np.ndarray, proportions: Sequence[Sequence[float]], seed: int) -> Partition:
    """Clients of equal size, client c with the class mix ``proportions[c]`` (rows sum to 1).

    The common size is the largest for which no class runs out, so samples of the more frequent classes may be left
    unused. This is the label skew of FFA-LoRA's experiments (Sun et al., ICLR 2024), e.g. [.1, .9], [.9, .1], [.5, .5].
    """
    classes, numbers = np.unique(np.asarray(labels), return_inverse=True)
    mix = np.asarray(proportions, dtype=np.float64)
    if mix.ndim != 2 or mix.shape[1] != len(classes):
        raise PartitionError(
            f"proportions has shape {list(mix.shape)}: give one row per client and one column for each of the "
            f"{len(classes)} classes {classes.tolist()[:10]}"
        )
    if (mix < 0).any() or not np.allclose(mix.sum(axis=1), 1, atol=1e-6):
        raise PartitionError(f"proportions={mix.tolist()}: every row must be non-negative and sum to 1")
    available = np.bincount(numbers, minlength=len(classes))
    demand = mix.sum(axis=0)
    size = int(np.floor(np.min(available[demand > 0] / demand[demand > 0]) + 1e-9))
    counts = np.stack([_apportion(size, row) for row in mix])  # [C, classes]
    while (counts.sum(axis=0) > available).any():  # rounding took one sample too many of a class
        size -= 1
        counts = np.stack([_apportion(size, row) for row in mix])
    return _deal(numbers, counts, seed)


def dirichlet(
    labels: Sequence[Any] | np.ndarray, clients: int, beta: float, seed: int, *, min_samples: int = 1
) -> Partition:
    """Each class is divided among the clients by a draw from Dirichlet(beta): small beta, strong skew.

    Yurochkin et al. 2019 (Bayesian Nonparametric Federated Learning, §4) and Li et al. 2022 (Federated Learning on
    Non-IID Data Silos, §4.1), who also draw again until every client has enough; at most 200 times here.
    """
    if not beta > 0:
        raise PartitionError(f"beta={beta}: must be positive; large values approach equal shares")
    classes, numbers = np.unique(np.asarray(labels), return_inverse=True)
    available = np.bincount(numbers, minlength=len(classes))
    generator = _generator(seed, stream=1)
    best = None
    for _ in range(_MOST_DRAWS):
        shares = generator.dirichlet(np.full(clients, float(beta)), size=len(classes))  # [classes, C]
        counts = np.stack([_apportion(int(n), row) for n, row in zip(available, shares, strict=True)], axis=1)
        if best is None or counts.sum(axis=1).min() > best.sum(axis=1).min():
            best = counts
        if best.sum(axis=1).min() >= min_samples:
            break
    if best is None:
        raise PartitionError(f"clients={clients}: nothing was drawn")
    made = _deal(numbers, best, seed)
    check_sizes(
        made, min_samples, f"after {_MOST_DRAWS} draws; raise beta={beta}, lower clients={clients} or min_samples"
    )
    return made


def by_column(values: Sequence[Any]) -> Partition:
    """One client per distinct value, named after it, in sorted order: a natural split. 7, 7.0 and "007" are one, which
    is said where texts differ so.
    """
    missing = [row for row, value in enumerate(values) if value is None or value != value]
    if missing:
        raise PartitionError(
            f"column is missing in {len(missing)} rows, the first of them {missing[0]}; fill or drop them"
        )
    names = np.asarray([name_of(value) for value in values])
    written: dict[str, set[str]] = {}
    for value in filter(lambda value: isinstance(value, str), values):
        written.setdefault(name_of(value), set()).add(value.strip())
    for name, spellings in written.items():
        if len(spellings) > 1:
            logger.warning(
                "column: %s are one client, %r, as are 7 and 007; where they are not, write a letter before each",
                *(" and ".join(map(repr, sorted(spellings))), name),
            )
    distinct, numbers = np.unique(names, return_inverse=True)
    ends = np.cumsum(np.bincount(numbers, minlength=len(distinct)))
    parts = np.split(np.argsort(numbers, kind="stable"), ends[:-1])
    return _partition(parts, len(names), tuple(distinct.tolist()))


def check_sizes(partition: Partition, min_samples: int, remedy: str = "") -> None:
    """Every client holds at least ``min_samples``, or ``PartitionError`` names the poorest client."""
    sizes = partition.sizes
    poorest = int(np.argmin(sizes))
    if sizes[poorest] < min_samples:
        raise PartitionError(
            f"client {partition.names[poorest]!r} (number {poorest} of {len(partition)}) is left with {sizes[poorest]} "
            f"samples, fewer than min_samples={min_samples} "
            + (remedy or f"of {partition.total}; use fewer clients, more data, or a less uneven partition")
        )


def describe(
    partition: Partition, labels: Sequence[Any] | np.ndarray, label_names: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Who holds what: per client its name, samples, share of all samples, and samples per class.

    These are counts of the clients' own data: on private data such a table is itself a disclosure.
    """
    classes, numbers = np.unique(np.asarray(labels), return_inverse=True)
    names = [label_names[int(value)] if label_names else str(value) for value in classes]
    return [
        {
            "client": name,
            "samples": len(part),
            "share": len(part) / max(partition.total, 1),
            "classes": dict(zip(names, np.bincount(numbers[part], minlength=len(classes)).tolist(), strict=True)),
        }
        for name, part in zip(partition.names, partition.indices, strict=True)
    ]


def _generator(seed: int, stream: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(stream,))))


def _apportion(total: int, shares: np.ndarray) -> np.ndarray:
    """Whole numbers that sum to ``total``, closest to ``total * shares`` (largest remainders)."""
    exact = total * shares
    counts = np.floor(exact + 1e-9).astype(np.int64)
    short = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:short]] += 1
    return counts


def _deal(numbers: np.ndarray, counts: np.ndarray, seed: int) -> Partition:
    """Deal each class's samples, in random order, to the clients: counts [C, classes]."""
    generator = _generator(seed)
    parts: list[list[np.ndarray]] = [[] for _ in counts]
    for label in range(counts.shape[1]):
        order = generator.permutation(np.flatnonzero(numbers == label))
        ends = np.cumsum(counts[:, label])
        for part, start, end in zip(parts, ends - counts[:, label], ends, strict=True):
            part.append(order[start:end])
    return _partition([np.concatenate(part) for part in parts], len(numbers))


def _partition(parts: Sequence[np.ndarray], total: int, names: tuple[str, ...] | None = None) -> Partition:
    indices = tuple(np.sort(part).astype(np.int64) for part in parts)
    return Partition(names or tuple(f"client-{client}" for client in range(len(parts))), indices, total)


def _agree(clients: int | None, given: int, whence: str) -> None:
    if clients is not None and clients != given:
        raise PartitionError(f"clients.count={clients}, but {whence} {given} clients; leave clients.count out")
