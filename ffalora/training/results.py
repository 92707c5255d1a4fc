"""What the passes of a logical step leave behind on the device, and how it comes to the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .arena import Arena
from .batches import PhysicalBatches
from .detectors import UpdateWatch
from .optim import Moments
from .report import TrainingReport
from .transfer import Sent


@dataclass
class StepResults:
    """Losses and norms of a step's samples, or users where these are drawn; all computed on private data.

    Attributes:
        rows: int64 ``[S]``, whose each is.
        plan: how the samples were cut.
        unwritten: of recorded passes, which trained tensors did not receive their gradients, bool ``[slots]`` on the
            device; None where passes were run, which look themselves.
    """

    rows: Tensor
    plan: PhysicalBatches
    unwritten: Tensor | None
    _arena: Arena
    _sent: Sent

    @classmethod
    def of(
        cls,
        passes: Sequence[tuple[Tensor, Tensor, np.ndarray]],
        plan: PhysicalBatches,
        arena: Arena,
        unwritten: Tensor | None,
    ) -> StepResults:
        """The results of passes: losses float32 and norms float64 on the device, and rows, ``[S]`` of each."""
        losses, norms, rows = zip(*passes, strict=True) if passes else ((), (), ())
        device, nothing = arena.gradients.device, np.empty(0, dtype=np.int64)
        joined = [
            torch.cat([torch.empty(0, dtype=kind, device=device), *parts])
            for kind, parts in ((torch.float32, losses), (torch.float64, norms))
        ]
        flags = [] if unwritten is None else [unwritten]
        return cls(torch.from_numpy(np.concatenate([nothing, *rows])), plan, unwritten, arena, Sent(*joined, *flags))

    def read(self) -> tuple[Tensor, Tensor]:
        """Losses and norms before clipping, on the CPU; waits for the device.

        Raises:
            GradientMissing: names the tensors that a backward pass did not reach.
        """
        losses, norms, *flags = self._sent.read()
        for unwritten in flags:
            self._arena.check_written(unwritten)
        return losses, norms


@dataclass
class Unfinished:
    """A step that was taken and whose results have not been read.

    Attributes:
        results: of its passes; watch: what looked at its update, if anything did.
        report: what they are added to; index, limits: as in ``TrainingReport.add_step``.
    """

    results: StepResults
    watch: UpdateWatch | None
    report: TrainingReport
    index: Tensor
    limits: Tensor | None

    def finish(self) -> Tensor:
        """Adds them to the report; waits for the device. Returns the norms before clipping, float64 ``[S]``.

        Raises:
            GradientMissing: a trained tensor received no gradient, so that the step has changed nothing. UpdateLost: or
                it stayed as it was.
        """
        losses, norms = self.results.read()
        if self.watch is not None:
            self.watch.check()
        self.report.add_step(self.index, self.results.rows, losses, norms, self.limits, self.results.plan)
        return norms


@contextmanager
def undone_where(unwritten: Tensor | None, state: Tensor, moments: Moments) -> Iterator[None]:
    """The step within the block changes nothing where a trained tensor received no gradient, which is a flag on the
    device that the host has not read yet.

    Args:
        unwritten: as in :class:`StepResults`; state: float32 ``[C,P]``; moments: of the local optimiser.
    """
    if unwritten is None:
        yield
        return
    before = [(tensor, tensor.clone()) for tensor in (state, *moments.tensors().values())]
    try:
        yield
    finally:
        raised = unwritten.any()
        for tensor, kept in before:
            torch.where(raised, kept, tensor, out=tensor)
