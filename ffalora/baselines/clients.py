"""The data of one client as baselines see it: one row of features and one label a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClientFeatures:
    """What a client holds.

    Attributes:
        client_id: persistent; noise and sampling depend on it, never on the client's place in a list.
        features: float32 ``[n,D]``, computed by a frozen encoder, each from its own sample alone.
        labels: int64 ``[n]`` classes from 0, or float32 ``[n]`` numbers.

    Raises:
        ValueError: shapes or dtypes that do not fit, or no sample.
    """

    client_id: int
    features: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        features, labels = self.features, self.labels
        if features.dim() != 2 or features.dtype != torch.float32 or not len(features):
            raise ValueError(
                f"client {self.client_id}: features must be float32 [n,D] with n of at least 1, got {features.dtype} "
                f"{list(features.shape)}; leave clients without samples out"
            )
        if labels.shape != features.shape[:1] or labels.dtype not in (torch.int64, torch.float32):
            raise ValueError(
                f"client {self.client_id}: labels must be int64 or float32 [{len(features)}], one a row of features, "
                f"got {labels.dtype} {list(labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.features)


def check_clients(clients: Sequence[ClientFeatures], classes: int | None) -> int:
    """The width D that all clients share.

    Args:
        clients: at least one.
        classes: number of classes, which labels must stay below; None where labels are numbers.

    Raises:
        ValueError: no clients, widths that differ, an id that occurs twice, or labels that do not fit.
    """
    if not clients:
        raise ValueError("clients is empty; give the features of at least one client")
    widths = {client.features.shape[1] for client in clients}
    if len(widths) > 1:
        raise ValueError(f"clients have features of widths {sorted(widths)}; compute all with one encoder")
    ids = [client.client_id for client in clients]
    if len(set(ids)) < len(ids):
        raise ValueError(f"client_id must be different for each client, got {ids}: equal ids draw equal noise")
    for client in clients:
        if (client.labels.dtype == torch.int64) != (classes is not None):
            raise ValueError(
                f"client {client.client_id}: labels are {client.labels.dtype}; classes={classes} needs "
                f"{'int64 classes' if classes is not None else 'float32 numbers'}"
            )
        if classes is not None and not (0 <= int(client.labels.min()) and int(client.labels.max()) < classes):
            raise ValueError(
                f"client {client.client_id}: labels must lie in 0 … {classes - 1} for classes={classes}, got "
                f"{int(client.labels.min())} … {int(client.labels.max())}"
            )
    return widths.pop()
