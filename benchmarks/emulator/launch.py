"""Triton launches on CPU tensors: compiled as for a GPU, the PTX executed here, the tensors changed in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from triton.runtime.jit import JITFunction

from .driver import Prepared, stub_driver
from .machine import Launch, Observer
from .memory import Device
from .parser import parse

#: Room on the device beside the tensors: red zones and rounding, for each of them and once.
_ROOM = 1024, 1 << 20
Report = dict[str, int]
#: Says of a launch (kernel, arguments by name, programs) which programs to run and who is told of their accesses.
Choice = Callable[[JITFunction, dict[str, Any], int], tuple[Sequence[int] | None, Observer | None]]


def run(
    kernel: Prepared, grid: Sequence[int], bound: dict[str, Any],
    programs: Sequence[int] | None = None, observer: Observer | None = None,
) -> Report:  # fmt: skip
    """Compiles a kernel and executes it on CPU tensors; what was counted.

    Tensors that share storage share it on the device; pointers are as aligned as the tensors are. Raises PTXError.
    """
    tensors = {name: value for name, value in bound.items() if isinstance(value, torch.Tensor)}
    storages = {t.untyped_storage().data_ptr(): (name, t.untyped_storage()) for name, t in tensors.items()}
    each, once = _ROOM
    device = Device(sum(storage.nbytes() + each for _, storage in storages.values()) + once)
    addresses, contents = {}, {}
    for pointer, (name, storage) in storages.items():
        contents[pointer] = torch.empty(0, dtype=torch.uint8).set_(storage)
        addresses[pointer] = device.allocate(contents[pointer].numpy(), name)
    arguments = []
    for name, kind in kernel.types.items():
        if kind != "constexpr":
            value = bound[name]
            if isinstance(value, torch.Tensor):
                start = addresses[value.untyped_storage().data_ptr()]
                value = start + value.storage_offset() * value.element_size()
            arguments.append(value)
    (code,) = parse(kernel.compiled.asm["ptx"]).values()
    scratch = [0] * (len(code.parameters) - len(arguments))  # Triton's own pointers, unused by these kernels
    metadata = kernel.compiled.metadata
    launch = Launch(
        code, device, [*arguments, *scratch], tuple(grid), 32 * metadata.num_warps, metadata.shared, programs, observer
    )
    for pointer, content in contents.items():
        start = addresses[pointer]
        content.numpy()[:] = device.memory[start : start + content.numel()]
    return launch.report()


@contextmanager
def emulated(cap: int = 90, choose: Choice | None = None) -> Iterator[list[tuple[str, Report]]]:
    """Within the block ``kernel[grid](…)`` on CPU tensors runs on the emulated part; yields names and counts.

    Args:
        cap: 80 or 90, for sm_80 or sm_90.
        choose: which programs of a launch to run; all of them where None.
    """
    reports: list[tuple[str, Report]] = []

    def emulate(kernel: Prepared, grid: tuple[int, int, int], bound: dict[str, Any]) -> None:
        programs, observer = (None, None) if choose is None else choose(kernel.fn, bound, grid[0])
        report = run(kernel, grid, bound, programs, observer)
        reports.append((kernel.fn.__name__, report | {"programs": grid[0]}))

    with stub_driver(f"sm_{cap}", emulate):
        yield reports
