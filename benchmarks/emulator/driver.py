"""Triton's own launcher without a device: a driver whose kernels are not loaded but handed to a function.

``kernel[grid](…)`` goes through the real ``JITFunction.run``, which binds and specialises the arguments, refuses what
it does not take, and finds a kernel that was launched before by its own key. What is left out is what comes after it:
the compiler, unless ``Prepared.compiled`` is asked for, and the call into the vendor's driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

#: Told of each launch: the kernel, its grid, and all its arguments by name.
Launched = Callable[["Prepared", tuple[int, int, int], dict[str, Any]], None]


def target_of(arch: str) -> GPUTarget:
    """Triton's name of a part: 'sm_90', 'gfx942', …"""
    return GPUTarget("hip", arch, 64) if arch.startswith("gfx") else GPUTarget("cuda", int(arch[3:]), 32)


@dataclass(frozen=True)
class Prepared:
    """A kernel for arguments of some types, in the place of the compiled one that ``JITFunction.run`` launches.

    Attributes:
        fn: the kernel.
        types: of its parameters by name, 'constexpr' where the value is compiled in.
        constants: those values by name.
        attributes: what the compiler is told of arguments (divisibility, …), by position.
        target: the part.
        options: all options of that part's compiler.
    """

    fn: JITFunction
    types: dict[str, Any]
    constants: dict[str, Any]
    attributes: dict[tuple[int, ...], list]
    target: GPUTarget
    options: dict[str, Any]
    function = packed_metadata = None

    def launch_metadata(self, *_: object) -> None:
        """What profilers would be told of a launch."""

    def run(self, x: int, y: int, z: int, *rest: Any) -> None:
        """The launch; behind the grid come stream, function, metadata and hooks (six of them), then the arguments."""
        driver.active.launched(self, (x, y, z), dict(zip(self.fn.arg_names, rest[6:], strict=True)))

    @cached_property
    def compiled(self) -> CompiledKernel:
        """The kernel compiled for its part, from Triton's cache where it is there."""
        source = ASTSource(self.fn, self.types, self.constants, self.attributes)
        return triton.compile(source, target=self.target, options=self.options)


@dataclass
class StubDriver:
    """What ``JITFunction.run`` asks of a driver."""

    arch: str
    launched: Launched
    torch_device: torch.device

    def get_current_target(self) -> GPUTarget:
        return target_of(self.arch)

    def get_current_device(self) -> str:
        """Triton keeps its kernels by device: those of a part of this kind are apart from every real one's."""
        return f"stub {self.arch}"

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return self.torch_device


def _prepare(self, key, signature, device, constexprs, options, attributes, warmup) -> Prepared:
    """In place of ``JITFunction._do_compile``."""
    kernels, _, target, _, _ = self.device_caches[device]
    constants = {self.arg_names[at[0]]: value for at, value in constexprs.items()}
    told = {at: what for at, what in attributes.items() if what}
    kernels[key] = Prepared(self, signature, constants, told, target, dict(options.__dict__))
    return kernels[key]


@contextmanager
def stub_driver(arch: str, launched: Launched, device: str = "cpu") -> Iterator[None]:
    """Within the block Triton launches on tensors of ``device`` ('cpu' or 'meta') as on ``arch``, by ``launched``."""
    stub = StubDriver(arch, launched, torch.device(device))
    with mock.patch.object(driver, "_active", stub), mock.patch.object(JITFunction, "_do_compile", _prepare):
        yield
