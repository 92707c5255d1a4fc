"""Clients that hold whole users: each protects its own alone, so that nobody may have samples at two of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..data.users import Owners
from ..privacy.sampling import bounded_records
from .partition import Partition, PartitionError


def whole_users(dealt: Partition, owners: Owners, are_users: bool, most: int | None, seed: int) -> Partition:
    """The samples of clients, whose each is, and at most so many of a user.

    Args:
        dealt: samples among clients; or, ``are_users``, users by number, who bring theirs with them (a sample of
            several owners goes where its first one is).
        owners: of all samples.
        most: of each user, as :func:`~ffalora.privacy.sampling.bounded_records` keeps them; None keeps all.
        seed: of what is kept.

    Raises:
        PartitionError: names a user who has samples at two clients.
    """
    parts = list(dealt.indices)
    if are_users:
        first = owners.users[owners.starts[:-1]]
        parts = [np.flatnonzero(np.isin(first, users)).astype(np.int64) for users in parts]
    _check_apart(dealt.names, parts, owners)
    if most is not None:
        for client, part in enumerate(parts):
            whose = owners.select(part)
            parts[client] = part[bounded_records(whose.users, whose.starts, most, seed)]
    return replace(dealt, indices=tuple(parts), total=len(owners), owners=owners)


def _check_apart(names: tuple[str, ...], parts: list[np.ndarray], owners: Owners) -> None:
    holder: dict[int, str] = {}
    for name, part in zip(names, parts, strict=True):
        for user in np.unique(owners.select(part).users).tolist():
            if holder.setdefault(user, name) != name:
                raise PartitionError(
                    f"user {owners.names[user]!r} has samples at the clients {holder[user]!r} and {name!r}, each of "
                    "which would spend its own ε on them; keep a user's samples at one client, or train at one site "
                    "(clients.count: 1)"
                )
