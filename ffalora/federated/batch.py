"""``optimizer.batch_size: auto`` for the clients of a run, from what is public about them."""

from __future__ import annotations

import logging

from ..config import Config
from ..privacy.batch import sensible_batch
from ..training.drawn import count_drawn
from .partition import Partition

logger = logging.getLogger(__name__)

#: What a run without a batch of its own computes, all clients and steps together: minutes on two cores.
MOST_SAMPLES = 40_000


def with_batch(config: Config, partition: Partition, clients: int | None = None) -> Config:
    """The configuration with a number for its batch: the smallest that spends the budget well, at most what
    ``MOST_SAMPLES`` allow and at least the usual one; the usual one where no ε is asked for.

    Args:
        partition: who holds what; the largest client decides, for it spends a batch worst.
        clients: of the run, where the partition is that of one site.
    """
    optimizer, privacy, federation = config.optimizer, config.privacy, config.federation
    sizes = [count_drawn(privacy, partition.owners, samples) for samples in partition.indices]
    if optimizer.batch_size != "auto":
        if optimizer.batch_size > max(sizes):
            logger.warning(
                "optimizer.batch_size=%d is more %s than any client has: each step takes all of a client's, and "
                "nothing is gained by sampling; auto finds a batch",
                optimizer.batch_size,
                "users" if privacy.draws_users else "samples",
            )
        return config
    batch = optimizer.batch
    if privacy.at_clients and privacy.target_epsilon is not None and privacy.sampling == "poisson":
        largest = privacy.public_size_bound or max(sizes)
        steps, usual = federation.steps, batch
        most = max(usual, MOST_SAMPLES // (steps * (clients or len(sizes))))
        terms = privacy.target_epsilon, privacy.delta, steps, most, privacy.group, privacy.trials
        batch = sensible_batch(largest, *terms)
        batch = max(batch, min(usual, largest))
    return config.model_copy(update={"optimizer": optimizer.model_copy(update={"batch_size": batch})})
