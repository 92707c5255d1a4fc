"""Triton's own launcher on a stub driver: it takes every kernel's arguments, and compiles nothing again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import launches
import pytest
import torch
from emulator.driver import Prepared, stub_driver
from launches import all_launches
from triton.runtime.jit import JITFunction

from ffalora_kernels import triton as shipped

BF16 = torch.bfloat16
BATCHES = ([16] * 16, [5, 0, 37], [1], [130, 33, 64])
CALLS: dict[str, Callable[[list[int]], None]] = {
    "expand_": lambda lengths: launches._expand(lengths, 1024, 8, BF16),
    "expand_ for three clients": lambda lengths: launches._expand(lengths, 1024, 8, BF16, clients=3),
    "backward": lambda lengths: launches._backward(lengths, 1024, 8, BF16),
    "backward at a large rank": lambda lengths: launches._backward(lengths, 1024, 128, BF16),
    "outer": lambda lengths: launches._outer(lengths, 8, 1024, BF16),
    "clip_reduce_": lambda lengths: launches._clip(len(lengths), 4096, 3, 1, "flat", squares=True),
    "clip_reduce_ without norms": lambda lengths: launches._clip(len(lengths), 4096, 3, 1, "flat", squares=False),
}


def launched(call: Callable[[], None]) -> list[Prepared]:
    """The kernels that a call launches on an sm_90."""
    kernels: list[Prepared] = []
    with stub_driver("sm_90", lambda kernel, *_: kernels.append(kernel), "meta"):
        call()
    return kernels


def test_every_kernel_passes_through_the_launcher_that_a_gpu_would_use() -> None:
    modules = [module for name, module in sys.modules.items() if name.startswith(f"{shipped.__name__}.")]
    kernels = {
        value for module in modules for name, value in vars(module).items()
        if isinstance(value, JITFunction) and name.endswith("_kernel")
    }  # fmt: skip
    assert {one.fn for one in all_launches(("sm_90",), everything=False)} == kernels


@pytest.mark.parametrize("name", CALLS)
def test_a_batch_of_another_size_finds_its_kernels_compiled(name: str) -> None:
    first, *others = (launched(partial(CALLS[name], lengths)) for lengths in BATCHES)
    assert first
    for kernels in others:
        assert [id(kernel) for kernel in kernels] == [id(kernel) for kernel in first]


def test_a_new_step_of_training_finds_its_kernel_compiled() -> None:
    sgd, adamw = (partial(launches._privatize, 3, 4096, *how) for how in (("sgd", 0), ("adamw", 2)))
    assert launched(sgd)[0] is launched(sgd)[0] is not launched(adamw)[0]
