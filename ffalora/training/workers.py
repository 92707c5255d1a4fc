"""One client's steps on several processes: each clips its own samples, the sums are added up, the noise is drawn once.

Every process holds the whole model and the same state; a logical batch is the same for all, and each takes every n-th
sample of each physical batch. What is exchanged is the clipped sum ``[C,P]``, never a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Workers:
    """The processes of the default ``torch.distributed`` group, which is initialised, that train together.

    Attributes:
        rank, size: of this process, and of the group.
    """

    rank: int
    size: int

    def same_for_all(self, drawn: list[np.ndarray]) -> list[np.ndarray]:
        """The first process's draw, on every process: cryptographic draws differ between processes."""
        box: list[Any] = [drawn]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def share(self, batch: np.ndarray) -> np.ndarray:
        """This process's part of a physical batch; the parts of all processes hold each sample once."""
        return batch[self.rank :: self.size]

    def add_up_(self, total: Tensor) -> None:
        """Sums float64 ``[C,P]`` over all processes, in place."""
        dist.all_reduce(total)

    def take_first_(self, total: Tensor) -> None:
        """Replaces the sum by the first process's, which holds the noise."""
        dist.broadcast(total, src=0)

    def gather(self, *columns: list[Any]) -> list[list[Any]]:
        """Each list with those of all processes appended, in order of rank: for reports and adaptive clipping."""
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, columns)
        return [[item for process in gathered for item in process[i]] for i in range(len(columns))]


def check_same_state(workers: Workers, state: Tensor) -> None:
    """Every process must start from the same state.

    Raises:
        ValueError: they do not, so that their sums would belong to different models.
    """
    mine = torch.stack([state.double().sum(), state.double().square().sum()])
    first = mine.clone()
    dist.broadcast(first, src=0)
    differ = torch.tensor([float(not torch.equal(mine, first))], device=state.device)
    dist.all_reduce(differ)
    if float(differ) > 0:
        raise ValueError(
            f"{int(differ)} of {workers.size} processes start from another state than the first; give all the same "
            "configuration, seed and checkpoint"
        )
