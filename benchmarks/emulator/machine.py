"""A launch on the emulated part: programs side by side, control flow, checks and counts.

All threads of as many programs as fit into ``MAX_THREADS`` advance together, each instruction over an array of threads.
Threads that branch apart wait for those that are behind in the code; they meet again where their counters do.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from .formats import BITS, NUMBER, WIDTH, Array
from .memory import Device, GlobalWatch, SharedWatch
from .parser import Instruction, Kernel, PTXError
from .registers import Mask, Registers

MAX_THREADS = 1 << 14
#: Hints and fences: memory is in order here, so that they do nothing.
IGNORED = {"fence", "membar", "griddepcontrol", "prefetch", "prefetchu", "createpolicy", "nanosleep", "setmaxnreg"}
_BRANCHES = {"bra", "ret", "exit"}
Execute = Callable[["Machine", Instruction, Mask], None]
#: Called with the programs, 32-byte sectors and direction of an access.
Observer = Callable[[Array, Array, bool], None]
#: What executes an operation; the modules of this package enter their own.
INSTRUCTIONS: dict[str, Execute] = {}


def instruction(*names: str) -> Callable[[Execute], Execute]:
    """Enters a function as what executes these operations."""

    def enter(execute: Execute) -> Execute:
        INSTRUCTIONS.update(dict.fromkeys(names, execute))
        return execute

    return enter


class Launch:
    """One launch of a kernel, run to its end when it is made; results are in the device's memory.

    Args:
        kernel: from ``parser.parse``.
        device: its memory.
        arguments: numbers, addresses, or the bytes of a structure.
        grid: programs along x, y, z.
        block: threads of a program; the kernel's own where None.
        shared_bytes: of dynamic shared memory.
        programs: indices of the programs to run; all of the grid where None.
        observer: told of every access to device memory.

    Attributes:
        counts: sectors (of 32 bytes) that warps ask for, wavefronts of shared memory, operations, atomic updates.
        sectors_read, sectors_written: what was touched at least once.

    Raises:
        PTXError: an access out of bounds, misaligned, of memory nobody wrote, or in a race; a barrier that not all
            threads reach; an instruction that is not supported.
    """

    def __init__(
        self, kernel: Kernel, device: Device, arguments: Sequence[object], grid: Sequence[int],
        block: int | None = None, shared_bytes: int = 0, programs: Sequence[int] | None = None,
        observer: Observer | None = None,
    ) -> None:  # fmt: skip
        self.kernel, self.device, self.observer = kernel, device, observer
        self.grid = (*grid, *(1,) * (3 - len(grid)))
        self.block = block or kernel.threads or 0
        self.shared_size = max(kernel.shared_bytes + shared_bytes, 16)
        self.parameters = {
            name: _bytes_of(value, kind) for (name, kind, _), value in zip(kernel.parameters, arguments, strict=False)
        }
        self.counts: Counter[str] = Counter()
        self.sectors_read: set[int] = set()
        self.sectors_written: set[int] = set()
        self.watch = GlobalWatch(device)
        chosen = np.arange(math.prod(self.grid)) if programs is None else np.asarray(programs, np.int64)
        step = max(1, MAX_THREADS // self.block)
        for first in range(0, len(chosen), step):
            Machine(self, chosen[first : first + step]).run()

    def report(self) -> dict[str, int]:
        """The counts, and the bytes of all sectors that were touched at least once."""
        unique = {
            "unique_read_bytes": 32 * len(self.sectors_read),
            "unique_write_bytes": 32 * len(self.sectors_written),
        }
        return dict(self.counts) | unique


@dataclass
class Copy:
    """Bytes on their way to shared memory: where to, what, whose (threads), and of which group of each thread."""

    to: Array
    data: Array
    lanes: Array
    group: Array


class Machine(Registers):
    """Some programs of a launch, running together."""

    def __init__(self, launch: Launch, programs: Array) -> None:
        super().__init__(launch.kernel, launch.grid, programs, launch.block)
        self.launch, self.device, self.counts, self.watch = launch, launch.device, launch.counts, launch.watch
        self.shared_size = launch.shared_size
        self.shared = np.full(self.n_programs * self.shared_size, 0xCC, np.uint8)
        self.shared_written = np.zeros(self.n_programs * self.shared_size, bool)
        self.shared_watch = SharedWatch(self.n_programs, self.shared_size)
        self.local = np.zeros((self.threads, max(self.kernel.local_bytes, 16)), np.uint8)
        self.copies: list[Copy] = []  # that have not arrived
        self.copy_group = np.zeros(self.threads, np.int64)  # of each thread: the group that it is filling

    def run(self) -> None:
        """Runs all threads to their end."""
        code, end = self.kernel.code, len(self.kernel.code)
        counter = np.zeros(self.threads, np.int64)
        here = np.ones(self.threads, bool)
        at, together = 0, True
        while True:
            if not together:
                live = counter[counter < end]
                if live.size == 0:
                    return
                at = int(live.min())
                here = counter == at
                together = bool(here.all())
            if at >= end:
                return
            self.current = x = code[at]
            mask = self._guard(x, None if together else here)
            if x.op not in _BRANCHES:
                if mask is None or mask.any():
                    _execute(self, x, mask)
                at += 1
                if not together:
                    counter[here] = at
                continue
            target = end if x.op != "bra" else self.kernel.labels[x.args[-1]]
            if mask is None:
                at = target
            elif together and not mask.any():
                at += 1
            else:
                counter[slice(None) if together else here] = at + 1
                counter[mask] = target
                together = False

    def _guard(self, x: Instruction, mask: Mask) -> Mask:
        """The threads that execute an instruction; None for all."""
        if x.predicate is None:
            return mask
        held = self.register(x.predicate)
        held = ~held if x.negated else held
        if mask is None:
            return None if held.all() else held
        return held & mask

    def fail(self, kind: str, what: str) -> NoReturn:
        """Raises PTXError with the place in PTX and source."""
        x = self.current
        name = ".".join([x.op, *x.mods])
        raise PTXError(f"{kind}: {what} [ptx line {x.line}, source line {x.source_line}, {name}]")

    def count_active(self, mask: Mask) -> int:
        """How many threads a mask has."""
        return self.threads if mask is None else int(mask.sum())

    def count_sectors(self, addresses: Array, size: int, lanes: Array, reading: bool) -> None:
        """Counts the 32-byte sectors that each warp asks for, and remembers which were touched at all."""
        every = [(addresses + offset) // 32 for offset in range(0, size, 32)]
        sectors = np.concatenate(every)
        keys = np.unique(np.tile(self.warp[lanes].astype(np.int64) << 40, len(every)) | sectors)
        self.counts["read_sectors" if reading else "write_sectors"] += keys.size
        touched = np.unique(keys & ((1 << 40) - 1)).tolist()
        (self.launch.sectors_read if reading else self.launch.sectors_written).update(touched)
        if self.launch.observer is not None:
            self.launch.observer(np.tile(self.program[lanes], len(every)), sectors, reading)


def _execute(machine: Machine, x: Instruction, mask: Mask) -> None:
    execute = INSTRUCTIONS.get(x.op)
    if execute is not None:
        execute(machine, x, mask)
    elif x.op not in IGNORED:
        raise PTXError(f"unsupported {x}")


def _bytes_of(value: object, kind: str) -> bytes:
    """A parameter as it lies in memory."""
    if isinstance(value, bytes):
        return value
    number = np.asarray(value)
    if kind[0] == "f":
        return number.astype(NUMBER[kind]).tobytes()
    return BITS[WIDTH[kind]](int(number) & ((1 << 8 * WIDTH[kind]) - 1)).tobytes()
