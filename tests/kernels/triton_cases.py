"""Cases of the Triton package alone: memory too far apart for 32 bits, and what its launchers decide.

Run by the interpreter, which works on addresses as they are; the emulator would need as much memory as they span.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import torch
from cases import (
    FP16,
    FP32,
    SCALE,
    assert_close,
    check_backward,
    check_expand,
    check_linear_cross_entropy,
    make_segments,
    rows,
)
from torch import Tensor

import ffalora_kernels as ffk
from ffalora_kernels import Segments, gpu_products
from ffalora_kernels.triton import IMPLEMENTATIONS

#: Elements that a 32-bit offset cannot reach.
FAR = 2**31


def far_rows(count: int, pitch: int, width: int, dtype: np.dtype | type) -> Tensor:
    """``[count, width]`` zeros whose rows are ``pitch`` apart: a sparse file, of which only touched pages take room.

    There is as much room before as an offset that wrapped around at 32 bits would go back, so that a kernel that loses
    64 bits gives wrong numbers instead of ending the process.
    """
    with tempfile.TemporaryFile() as file:
        whole = np.memmap(file, dtype, "w+", shape=(FAR + (count - 1) * pitch + width,))
    return torch.from_numpy(whole)[FAR:].as_strided((count, width), (pitch, 1))


def module_of(op: str) -> ModuleType:
    """The module whose launcher serves an operation, a broken copy's among them."""
    return sys.modules[inspect.unwrap(IMPLEMENTATIONS[op]).__module__]


def check_far_activations(backend: str, n: int = 40, r: int = 4) -> None:
    """Rows of y, dy and the arena beyond 2³¹ elements."""
    torch.manual_seed(0)
    segments = make_segments((130, 70))
    m = segments.n_tokens
    far, arena = far_rows(m, 2**24 - 16, n, np.float16), far_rows(2, FAR + 16, n * r, np.float32)
    far.copy_(torch.randn(m, n))
    h, b, near, close = rows(m, r, FP16), torch.randn(1, n, r).half(), far.clone(), torch.zeros(2, n * r)
    assert 130 * far.stride(0) > FAR, "the second segment starts within 32 bits"
    with ffk.use_backend("reference"):
        dh_expected = ffk.backward(near, h, b, segments, SCALE, close, 0)
        ffk.expand_(near, h, b, segments, SCALE)
    with ffk.use_backend(backend):
        dh = ffk.backward(far, h, b, segments, SCALE, arena, 0)
        ffk.expand_(far, h, b, segments, SCALE)
    for name, actual, expected in (("dh", dh, dh_expected), ("arena", arena, close), ("y", far, near)):
        assert_close(name, actual, expected)


def check_far_partial_sums(backend: str, n: int = 300, r: int = 4) -> None:
    """Partial sums of dh beyond 2³¹ elements, as ``backward`` writes them."""
    torch.manual_seed(0)
    segments, module = make_segments((9, 8)), module_of("backward")
    m = segments.n_tokens
    dy, h, b = rows(m, n, torch.float32), rows(m, r, torch.float32), torch.randn(1, n, r)
    parts: list[Tensor] = []

    def far_sums(blocks: int, size: int, zeroed: bool, like: Tensor) -> Tensor:
        assert blocks > 2, "two pitches of 2**30 are needed to leave 32 bits"
        parts.append(far_rows(blocks, FAR // 2, size, np.float32))
        return parts[0]

    def add(given: Tensor, dh: Tensor, *norms: Tensor | None) -> None:
        dh.copy_(given.sum(0).view_as(dh))

    with ffk.use_backend("reference"):
        expected = ffk.backward(dy, h, b, segments, SCALE, torch.zeros(2, n * r), 0)
    with ffk.use_backend(backend), mock.patch.multiple(module, partial_sums=far_sums, sum_parts=add):
        assert_close("dh", ffk.backward(dy, h, b, segments, SCALE, torch.zeros(2, n * r), 0), expected)
    assert parts, "no partial sums were made"


def check_far_sums(backend: str) -> None:
    """Partial sums of dh beyond 2³¹ elements, as they are added up."""
    join = sys.modules[f"{module_of('backward').__package__}.join"]
    parts, dh = far_rows(3, FAR // 2, 512, np.float32), torch.zeros(512)
    parts.copy_(torch.randn(3, 512))
    join._sum_parts_kernel[(512 // join.SUM_BLOCK,)](
        parts, dh, None, None, parts.stride(0) // join.PART_UNIT, 3, 0, 0, 1,
        DH=True, SQUARES=False, PART_UNIT=join.PART_UNIT, BLOCK=join.SUM_BLOCK,
        AT_ONCE=join.SUM_AT_ONCE, num_warps=4,
    )  # fmt: skip
    assert_close("dh", dh, parts.double().sum(0))


def check_far_clip(backend: str, p: int = 90) -> None:
    """Rows of the arena beyond 2³¹ elements, squared and summed."""
    torch.manual_seed(0)
    arena = far_rows(2, FAR + 16, p, np.float32)
    arena.copy_(torch.randn(2, p))
    client, bounds, limit = torch.zeros(2).int(), torch.tensor([0, p]).int(), torch.ones(1, 1).double()
    results = []
    for name, rows_of in (("reference", arena.clone()), (backend, arena)):
        total = torch.zeros(1, p, dtype=torch.float64)
        with ffk.use_backend(name):
            results.append((total, *ffk.clip_reduce_(total, rows_of, client, limit, bounds)))
    for actual, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def check_far_state(backend: str, p: int = 90) -> None:
    """Rows of the state beyond 2³¹ elements."""
    torch.manual_seed(0)
    state, total = far_rows(2, FAR + 16, p, np.float32), torch.randn(2, p, dtype=torch.float64)
    state.copy_(torch.randn(2, p))
    near, ids, one = state.clone(), torch.arange(2), torch.ones(2, dtype=torch.float64)
    for name, rows_of in (("reference", near), (backend, state)):
        with ffk.use_backend(name):
            ffk.privatize_step_(
                rows_of, total, client_id=ids, step=ids, noise_std=one, denominator=one, lr=one, key=3
            )  # fmt: skip
    torch.testing.assert_close(state.clone(), near, rtol=3e-7, atol=1e-7)


def check_deterministic_sums(backend: str) -> None:
    """However many blocks of out-features there are, a deterministic dh is never summed by atomic updates."""
    choose = module_of("backward").dh_reduction
    for blocks in range(1, 65):
        for r in (1, 8, 32, 256):
            assert choose(256 * blocks, r, blocks, 2, True) != "atomic", f"{blocks} blocks of rank {r}"


def check_current_device(backend: str) -> None:
    """Every launcher runs with its first tensor's device as the current one, and the others find it set already."""

    class Entered(Exception):
        pass

    def enter(device: torch.device) -> None:
        raise Entered(device)

    with mock.patch.object(torch.cuda, "current_device", lambda: 0), mock.patch.object(torch.cuda, "device", enter):
        for op, launcher in IMPLEMENTATIONS.items():
            try:
                launcher(SimpleNamespace(device=torch.device("cuda", 1)))
            except Entered as entered:
                assert entered.args == (torch.device("cuda", 1),)
            except TypeError as missing:
                raise AssertionError(f"{op} was launched on another device than its tensor's") from missing


def check_padded_sums(backend: str) -> None:
    """A number of tokens and a rank whose product is no multiple of PART_UNIT: the last numbers of dh are there."""
    torch.manual_seed(0)
    segments = Segments.from_lengths([5, 2])
    dy, h, b = rows(7, 300, FP16), rows(7, 3, FP16), torch.randn(1, 300, 3).half()
    with ffk.use_backend("reference"):
        expected = ffk.backward(dy, h, b, segments, SCALE, torch.zeros(2, 900), 0)
    with ffk.use_backend(backend):
        dh = ffk.backward(dy, h, b, segments, SCALE, torch.zeros(2, 900), 0)
    assert dh.is_contiguous()
    assert_close("dh", dh, expected)


def check_chunks_of_tokens(backend: str) -> None:
    """Tokens in chunks of three, the last one of two, across the bounds of segments."""
    module = module_of("linear_cross_entropy")
    with mock.patch.object(module, "SCRATCH_BYTES", 3 * 4 * 320):
        assert module.chunk_tokens(301) == 3
        check_linear_cross_entropy(backend, lengths=(4, 0, 7), dtype=FP16)
    assert module.chunk_tokens(128256) == 512 and module.chunk_tokens(2**27) == 1


def check_rank_beyond_the_kernels(backend: str) -> None:
    """What answers where no backend was asked for, at a rank that no kernel is compiled for."""
    with mock.patch.dict(IMPLEMENTATIONS, expand_=gpu_products.expand, backward=gpu_products.backward):
        check_expand(backend, lengths=(9, 0, 20), n=40, r=300, dtype=FP16, n_clients=2, pad=3)
        check_backward(backend, lengths=(9, 0, 20), n=24, r=300, n_clients=2, accumulate=True)
        check_backward(backend, lengths=(9, 20), n=24, r=300, dtype=FP16, b_dtype=FP32)


def check_limit_of_nan(backend: str) -> None:
    """Limits are not read before a launch: one of NaN lets nothing through."""
    limit, total = torch.tensor([[torch.nan], [1.0]]).double(), torch.zeros(2, 40).double()
    client, bounds, arena = torch.tensor([0, 1, 0]).int(), torch.tensor([0, 40]).int(), torch.randn(3, 40)
    with ffk.use_backend(backend):
        ffk.clip_reduce_(total, arena, client, limit, bounds)
    assert not total[0].any() and 0.99 < total[1].norm() <= 1


#: Cases that the emulator leaves out: it would need as much memory as they span, or nothing is launched.
NOT_EMULATED = {
    "far_activations": check_far_activations,
    "far_partial_sums": check_far_partial_sums,
    "far_sums": check_far_sums,
    "far_clip": check_far_clip,
    "far_state": check_far_state,
    "deterministic_sums": check_deterministic_sums,
    "current_device": check_current_device,
}
TRITON_CASES: dict[str, Callable[..., None]] = {
    **NOT_EMULATED,
    "padded_sums": check_padded_sums,
    "chunks_of_tokens": check_chunks_of_tokens,
    "limit_of_nan": check_limit_of_nan,
    "rank_beyond_the_kernels": check_rank_beyond_the_kernels,
}
