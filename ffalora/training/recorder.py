"""What a device did once, repeated as one launch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from weakref import WeakSet

import torch

#: Makes a function that repeats what the given one did, without its host's part.
Record = Callable[[Callable[[], None]], Callable[[], None]]


class CudaRecorder:
    """Records as CUDA graphs of a device that share one pool of memory: they are replayed one after another. What is
    recorded has run before, so that whatever is made at first use (compiled kernels, workspaces of libraries) is there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: tuple | None = None
        self._stream: torch.cuda.Stream | None = None
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def __call__(self, compute: Callable[[], None]) -> Callable[[], None]:
        with torch.cuda.device(self._device):  # streams are the current device's, and work of others is not recorded
            with suppress(torch.OutOfMemoryError):  # left behind with what its traceback holds
                return self._recorded(compute)
            torch.cuda.empty_cache()  # of what is kept for passes that are run, none can be taken while recording
            return self._recorded(compute)

    def _recorded(self, compute: Callable[[], None]) -> Callable[[], None]:
        """As ``torch.cuda.graph`` does it, but the memory that passes have used before stays theirs: given back for
        each recording, it would have to be asked for again.
        """
        if not self._graphs:  # a pool that lost its last graph may not be used again
            self._pool = torch.cuda.graph_pool_handle()
        graph, self._stream = torch.cuda.CUDAGraph(), self._stream or torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool)
            try:
                compute()
            finally:
                graph.capture_end()
        self._graphs.add(graph)
        return graph.replay
