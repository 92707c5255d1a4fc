"""Processes of one gloo group for tests: forked, so that nothing is imported again."""

from __future__ import annotations

import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ffalora.training.workers import Workers, find_workers

_PATIENCE = 120


class RankFailed(AssertionError):
    """A process raised something that the test did not expect."""


def on_ranks(size: int, function: Callable[[Workers], Any]) -> list[Any]:
    """What ``function`` returns in each of ``size`` processes, in order of rank; None for one that was killed.

    Raises:
        RankFailed: with the traceback of the process.
    """
    with tempfile.TemporaryDirectory() as folder:
        children = [_start(rank, size, function, Path(folder)) for rank in range(size)]
        ended = _wait(children)
        found = [Path(folder) / f"{rank}.pickle" for rank in range(size)]
        results = [pickle.loads(path.read_bytes()) if path.exists() else (True, None) for path in found]
    failed = [f"process {rank}:\n{value}" for rank, (is_done, value) in enumerate(results) if not is_done]
    if failed or not ended:
        raise RankFailed("\n".join(failed) or f"still running after {_PATIENCE} s")
    return [value for _, value in results]


def _start(rank: int, size: int, function: Callable[[Workers], Any], folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    result: tuple[bool, Any]
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
        result = (True, function(find_workers()))
    except BaseException:
        result = (False, traceback.format_exc())
    try:
        (folder / f"{rank}.pickle.part").write_bytes(pickle.dumps(result))
        (folder / f"{rank}.pickle.part").rename(folder / f"{rank}.pickle")
    finally:
        os._exit(0)


def _wait(children: list[int]) -> bool:
    """Whether all ended by themselves; those that did not are killed."""
    until, waiting = time.monotonic() + _PATIENCE, set(children)
    while waiting and time.monotonic() < until:
        waiting -= {child for child in waiting if os.waitpid(child, os.WNOHANG)[0]}
        time.sleep(0.01)
    for child in waiting:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return not waiting
