"""Processes that work on one run: each clips its own samples, the sums are added up, the noise is drawn once.

Every process holds the whole model and the same state, and draws the same logical batch, of which it takes a share.
What is exchanged in a logical step is the clipped sum ``[C,P]``, never a sample's gradient.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ..privacy.sampling import Draw, SystemDraw

T = TypeVar("T")
logger = logging.getLogger(__name__)
#: How long a process waits for the others: the first one evaluates and writes alone. A process that *ends* is noticed
#: at once, by its closed connection and by torchrun.
_PATIENCE = timedelta(hours=12)


class WorkersLost(RuntimeError):
    """Another process of the run ended, so that the sums of a step can no longer be formed."""


class LeadStopped(RuntimeError):
    """The first process refused to go on; it says why, and the others end with it."""


@dataclass(frozen=True)
class Workers:
    """The processes of the default ``torch.distributed`` group that work together; by default this process alone.

    Attributes:
        rank, size: of this process, and of the group.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the first process: it alone writes, charges, adds noise, aggregates and evaluates."""
        return self.rank == 0

    def share(self, lengths: np.ndarray) -> np.ndarray:
        """Positions of this process's samples, int64 and ascending; the shares of all hold each position once.

        They are dealt out from the longest to the shortest, forth and back, so that all have about as many tokens.

        Args:
            lengths: tokens of each sample, ``[S]``.
        """
        order, place = np.argsort(-np.asarray(lengths), kind="stable"), np.arange(len(lengths)) % (2 * self.size)
        return np.sort(order[np.minimum(place, 2 * self.size - 1 - place) == self.rank])

    def add_up_(self, total: Tensor) -> None:
        """Sums a tensor over all processes, in place."""
        if self.size > 1:
            with self._waiting():
                dist.all_reduce(total)

    def same_for_all(self, value: T) -> T:
        """The first process's value, on every process."""
        if self.size == 1:
            return value
        box: list[Any] = [value if self.leads else None]
        with self._waiting():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def from_lead(self, function: Callable[[], T]) -> T:
        """What ``function`` returns in the first process, the only one that calls it.

        Raises:
            LeadStopped: on the others, where it raised there.
        """
        if self.size == 1:
            return function()
        result: tuple[bool, Any] = (True, None)
        try:
            if self.leads:
                result = (True, function())
        except BaseException as error:
            self.same_for_all((False, f"{type(error).__name__}: {error}"))
            raise
        is_done, value = self.same_for_all(result)
        if not is_done:
            raise LeadStopped(f"process {self.rank} of {self.size} ends with the first one, which stopped: {value}")
        return value

    def gather(self, value: T) -> list[T]:
        """Every process's value, in order of rank."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        with self._waiting():
            dist.all_gather_object(gathered, value)
        return gathered

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what gloo and NCCL raise
            raise WorkersLost(
                f"process {self.rank} of {self.size} lost the others: one of them ended or was killed. What is on the "
                "disk is whole, and all that may have left is charged; go on with --resume, on any number of processes"
            ) from error


#: One process, which works on its own.
ALONE = Workers()


class _Pass:
    """What the first process sends where it is about to call the model."""


@dataclass(frozen=True)
class ShardHolders(Workers):
    """Processes that each hold a part of the model's base, so that none can pass anything through it alone: where the
    first works for all, the others take a pass with each of its.

    Attributes:
        root: the outermost module that is cut. follow: passes anything through the model.
    """

    root: nn.Module = field(kw_only=True)
    follow: Callable[[], object] = field(kw_only=True)

    def from_lead(self, function: Callable[[], T]) -> T:
        hook = self.root.register_forward_pre_hook(self._call_others, prepend=True) if self.leads else None
        try:
            return super().from_lead(function)
        finally:
            if hook is not None:
                hook.remove()
            cast(FSDPModule, self.root).reshard()  # until the next backward pass its own weights would stay gathered

    def same_for_all(self, value: T) -> T:
        found = super().same_for_all(value)
        while isinstance(found, _Pass):
            self.follow()
            found = super().same_for_all(value)
        return found

    def _call_others(self, *_: Any) -> None:
        super().same_for_all(_Pass())


def drawn_alike(draw: Draw, workers: Workers) -> Draw:
    """``draw`` as all processes make it: one from the operating system gets a key that the first process made. Ask
    anew whenever training begins: a step that is taken again, after a resume or in a second run, must draw afresh.
    """
    if workers.size == 1 or not isinstance(draw, SystemDraw):
        return draw
    return SystemDraw(workers.same_for_all(os.urandom(32)))


def find_workers() -> Workers:
    """The default group where it is initialised, else this process alone."""
    if dist.is_available() and dist.is_initialized():
        return Workers(dist.get_rank(), dist.get_world_size())
    return ALONE


@contextmanager
def joined() -> Iterator[Workers]:
    """The processes that torchrun started (its environment variables RANK, WORLD_SIZE and MASTER_ADDR tell), as one
    group while the context lasts; a group that was initialised before, or this process alone, as it is.

    On a machine with CUDA each process takes the device of its LOCAL_RANK. Only the first one warns and logs.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ
    if not launched or not dist.is_available() or dist.is_initialized():
        yield find_workers()
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=_PATIENCE)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    workers = find_workers()
    try:
        with warnings.catch_warnings():
            if not workers.leads:
                warnings.simplefilter("ignore")
                logging.disable(logging.WARNING)
            yield workers
    finally:
        logging.disable(logging.NOTSET)
        dist.destroy_process_group()


def _end_with(launcher: int) -> None:
    """Ends this process when its launcher is gone, killed ones included: nobody waits for what it would go on to spend.
    What is on the disk is whole at every moment.
    """
    while os.getppid() == launcher:
        time.sleep(0.5)
    logger.warning("torchrun (process %d) is gone, and process %d ends with it", launcher, os.getpid())
    os._exit(1)


def check_same_state(workers: Workers, state: Tensor) -> None:
    """Every process must start from the same state.

    Raises:
        ValueError: they do not, so that their sums would belong to different models.
    """
    mine = torch.stack([state.double().sum(), state.double().square().sum()]).tolist()
    differ = sum(other != mine for other in workers.gather(mine))
    if differ:
        raise ValueError(
            f"{differ} of {workers.size} processes start from another state than process {workers.rank}; give all the "
            "same configuration, seed and checkpoint"
        )
