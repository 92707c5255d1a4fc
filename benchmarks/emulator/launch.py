"""Triton launches on CPU tensors: compiled as for a GPU, the PTX executed here, the tensors changed in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from .machine import Launch, Observer
from .memory import Device
from .parser import parse

_TYPES = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32",
    torch.int64: "i64", torch.float64: "fp64",
}  # fmt: skip
_OPTIONS = ("num_warps", "num_stages")
#: Room on the device beside the tensors: red zones and rounding, for each of them and once.
_ROOM = 1024, 1 << 20
Report = dict[str, int]
#: Says of a launch (kernel, arguments by name, programs) which programs to run and who is told of their accesses.
Choice = Callable[[JITFunction, dict[str, Any], int], tuple[Sequence[int] | None, Observer | None]]


def signature(fn: JITFunction, bound: dict[str, Any]) -> tuple[dict, dict, dict]:
    """Types, constants and divisibility attributes that Triton's own launcher would derive from these arguments."""
    types: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list] = {}
    for at, parameter in enumerate(fn.params):
        value = bound[parameter.name]
        divisible = False
        one = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or one:
            types[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            types[parameter.name] = "*" + _TYPES[value.dtype]
            divisible = value.data_ptr() % 16 == 0 and not parameter.do_not_specialize_on_alignment
        elif isinstance(value, int):
            types[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            divisible = value % 16 == 0 and not parameter.do_not_specialize
        else:
            types[parameter.name] = "fp32"
        if divisible:
            attributes[(at,)] = [["tt.divisibility", 16]]
    return types, constants, attributes


def bind(fn: JITFunction, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a launch by name."""
    return dict(zip((p.name for p in fn.params), args, strict=False)) | kwargs


def run(
    fn: JITFunction, grid: Sequence[int], bound: dict[str, Any], cap: int, options: dict[str, int],
    programs: Sequence[int] | None = None, observer: Observer | None = None,
) -> Report:  # fmt: skip
    """Compiles a kernel for sm_``cap`` (80 or 90) and executes it on CPU tensors; what was counted.

    Tensors that share storage share it on the device; pointers are as aligned as the tensors are. Raises PTXError.
    """
    types, constants, attributes = signature(fn, bound)
    source = ASTSource(fn=fn, signature=types, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", cap, 32), options=options)
    tensors = {name: value for name, value in bound.items() if isinstance(value, torch.Tensor)}
    storages = {t.untyped_storage().data_ptr(): (name, t.untyped_storage()) for name, t in tensors.items()}
    each, once = _ROOM
    device = Device(sum(storage.nbytes() + each for _, storage in storages.values()) + once)
    addresses, contents = {}, {}
    for pointer, (name, storage) in storages.items():
        contents[pointer] = torch.empty(0, dtype=torch.uint8).set_(storage)
        addresses[pointer] = device.allocate(contents[pointer].numpy(), name)
    arguments = []
    for name, kind in types.items():
        if kind != "constexpr":
            value = bound[name]
            if isinstance(value, torch.Tensor):
                start = addresses[value.untyped_storage().data_ptr()]
                value = start + value.storage_offset() * value.element_size()
            arguments.append(value)
    (kernel,) = parse(compiled.asm["ptx"]).values()
    scratch = [0] * (len(kernel.parameters) - len(arguments))  # Triton's own pointers, unused by these kernels
    launch = Launch(
        kernel, device, [*arguments, *scratch], tuple(grid), 32 * compiled.metadata.num_warps,
        compiled.metadata.shared, programs, observer,
    )  # fmt: skip
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

    def emulate(self: JITFunction, *args: Any, grid: Sequence[int], warmup: bool = False, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
        bound = bind(self, args, kwargs)
        programs, observer = (None, None) if choose is None else choose(self, bound, grid[0])
        report = run(self, grid, bound, cap, options, programs, observer)
        reports.append((self.__name__, report | {"programs": grid[0]}))

    with mock.patch.object(JITFunction, "run", emulate):
        yield reports
