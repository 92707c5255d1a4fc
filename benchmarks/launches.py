"""Every launch that the shipped configurations can make, captured from the launchers themselves without launching.

The launchers run on meta tensors and Triton's own launcher on a stub driver, so that what is compiled here is what a
GPU would be given: the same kernels, constants, alignments, warps and stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from emulator.driver import Prepared, stub_driver
from triton.runtime.jit import JITFunction

from ffalora_kernels import Segments
from ffalora_kernels.triton import IMPLEMENTATIONS, launch

#: Ranks of each type: bfloat16 stands for 16 bits, the others for what differs from it.
RANKS = {torch.bfloat16: (1, 8, 12, 32, 64, 128, 256), torch.float16: (8,), torch.float32: (8, 64)}
KEY_WORDS = ("num_warps", "num_stages")


@dataclass(frozen=True)
class Launch:
    """One kernel as a launcher would compile it, and the case it was captured from."""

    case: str
    dtype: str
    rank: int
    arch: str
    fn: JITFunction
    types: dict
    constants: dict
    attributes: dict
    options: dict
    programs: int

    @property
    def kernel(self) -> str:
        """The kernel's name without the leading underscore."""
        return self.fn.__name__.strip("_")


@contextmanager
def recorded(case: str, dtype: str, rank: int, arch: str) -> Iterator[list[Launch]]:
    """Within the block launches are recorded, not made, and every device counts as ``arch``."""
    launches: list[Launch] = []

    def record(kernel: Prepared, grid: tuple[int, int, int], _: dict) -> None:
        options = {name: kernel.options[name] for name in KEY_WORDS}
        what = kernel.fn, kernel.types, kernel.constants, kernel.attributes, options
        launches.append(Launch(case, dtype, rank, arch, *what, grid[0]))

    with stub_driver(arch, record, "meta"), mock.patch.object(launch, "DEFAULT_ARCHITECTURE", arch):
        yield launches


def _layer(m: int, n: int, r: int, clients: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    empty = lambda *shape: torch.empty(*shape, dtype=dtype, device="meta")  # noqa: E731
    return empty(m, n), empty(m, r), empty(clients, n, r)


def _backward(lengths: list[int], n: int, r: int, dtype: torch.dtype, clients: int = 1, **flags: bool) -> None:
    segments = Segments.from_lengths(lengths, device="meta")
    arena = torch.empty(len(lengths), n * r + 16, device="meta")
    squares = torch.empty(len(lengths), 2, dtype=torch.float64, device="meta")
    options = {"accumulate": False, "deterministic": True} | flags
    IMPLEMENTATIONS["backward"](
        *_layer(segments.n_tokens, n, r, clients, dtype), segments.offsets, segments.client, 1.0, segments.longest,
        arena, 0, squares, 0, *options.values(),
    )  # fmt: skip


def _expand(lengths: list[int], n: int, r: int, dtype: torch.dtype, clients: int = 1) -> None:
    segments = Segments.from_lengths(lengths, device="meta")
    layer = _layer(segments.n_tokens, n, r, clients, dtype)
    IMPLEMENTATIONS["expand_"](*layer, segments.offsets, segments.client, 1.0, segments.longest)


def _outer(lengths: list[int], n: int, k: int | None, dtype: torch.dtype) -> None:
    segments = Segments.from_lengths(lengths, device="meta")
    p, q, _ = _layer(segments.n_tokens, n, k or 1, 1, dtype)
    arena = torch.empty(len(lengths), n * (k or 1), device="meta")
    squares = torch.empty(len(lengths), 2, dtype=torch.float64, device="meta")
    IMPLEMENTATIONS["outer"](
        p, None if k is None else q, segments.offsets, 1.0, segments.longest, arena, 0, squares, 0, False
    )


def _clip(s: int, p: int, g: int, clients: int, mode: str, squares: bool) -> None:
    wide = {"dtype": torch.float64, "device": "meta"}
    IMPLEMENTATIONS["clip_reduce_"](
        torch.empty(clients, p, **wide), torch.empty(s, p, device="meta"),
        torch.empty(s, g, **wide) if squares else None,
        torch.empty(s, dtype=torch.int32, device="meta"), torch.empty(clients, g, **wide),
        torch.empty(g + 1, dtype=torch.int32, device="meta"), mode, 0.01,
    )  # fmt: skip


def _privatize(c: int, p: int, optimizer: str, moments: int) -> None:
    rows = [torch.empty(c, p, device="meta") for _ in range(4)]
    whole = [torch.empty(c, dtype=torch.int64, device="meta") for _ in range(3)]
    wide = {"dtype": torch.float64, "device": "meta"}
    scalars = {name: torch.empty(c, **wide) for name in ("noise_std", "denominator", "lr")}
    IMPLEMENTATIONS["privatize_step_"](
        rows[0], exp_avg=rows[1] if moments > 0 else None, exp_avg_sq=rows[2] if moments > 1 else None,
        total=torch.empty(c, p, **wide), anchor=rows[3], client_id=whole[0], step=whole[1], age=whole[2], **scalars,
        index=torch.empty(p, dtype=torch.int32, device="meta"), key=5, stream=0, optimizer=optimizer, beta1=0.9,
        beta2=0.999, eps=1e-8, weight_decay=0.01, mu=0.1, dp_bias_correction=False,
    )  # fmt: skip


def _head_loss(m: int, d: int, v: int, dtype: torch.dtype, bias: bool = False, **changes: object) -> None:
    segments = Segments.from_lengths([m // 4] * 4, device="meta")
    empty = lambda *shape: torch.empty(*shape, dtype=dtype, device="meta")  # noqa: E731
    targets = torch.empty(m, dtype=torch.int64, device="meta")
    settings = {"ignore_index": -100, "mean": True, "softcap": 0.0, "gradient": True} | changes
    IMPLEMENTATIONS["linear_cross_entropy"](
        empty(m, d), empty(v, d), empty(v) if bias else None, targets, segments.offsets, *settings.values()
    )


def cases() -> Iterator[tuple[str, torch.dtype, int, object]]:
    """``(name, dtype, rank, call)`` of every combination in the report."""
    batch, long = [128] * 8, [4096, 1000]
    for dtype, ranks in RANKS.items():
        for r in ranks:
            yield "deterministic", dtype, r, lambda r=r, d=dtype: _backward(batch, 4096, r, d)
            yield "atomic", dtype, r, lambda r=r, d=dtype: _backward(batch, 4096, r, d, deterministic=False)
            yield "one client", dtype, r, lambda r=r, d=dtype: _expand(batch, 4096, r, d)
            if dtype == torch.bfloat16:
                yield "accumulate, odd n", dtype, r, lambda r=r, d=dtype: _backward(batch, 1001, r, d, accumulate=True)
                yield "walk", dtype, r, lambda r=r, d=dtype: _backward(long * 16, 4096, r, d)
                yield "split", dtype, r, lambda r=r, d=dtype: _backward(long, 1024, r, d)
                yield "several clients", dtype, r, lambda r=r, d=dtype: _expand(batch, 4096, r, d, clients=3)
        yield "gradient of a", dtype, 8, lambda d=dtype: _outer(batch, 8, 1024, d)
        yield "gradient of a, long", dtype, 16, lambda d=dtype: _outer(long, 16, 1024, d)
        yield "head", dtype, 0, lambda d=dtype: _outer([1] * 8, 1024, 1024, d)
        yield "bias", dtype, 0, lambda d=dtype: _outer(batch, 1024, None, d)
        yield "losses of a head", dtype, 0, lambda d=dtype: _head_loss(1024, 2048, 128256, d)
        if dtype == torch.bfloat16:
            yield (
                "losses of a biased and capped head",
                dtype,
                0,
                lambda d=dtype: _head_loss(64, 64, 50257, d, bias=True, mean=False, softcap=30.0),
            )
            yield "losses without gradient", dtype, 0, lambda d=dtype: _head_loss(64, 64, 128256, d, gradient=False)
    for g in (1, 24):
        yield f"flat, {g} groups", torch.float32, 0, lambda g=g: _clip(64, 393216, g, 1, "flat", False)
        yield (
            f"automatic, {g} groups, clients",
            torch.float32,
            0,
            lambda g=g: _clip(64, 393216, g, 3, "automatic", True),
        )
    yield "sgd", torch.float32, 0, lambda: _privatize(3, 393216, "sgd", 0)
    yield "momentum", torch.float32, 0, lambda: _privatize(3, 393216, "sgd", 1)
    yield "adamw", torch.float32, 0, lambda: _privatize(3, 393216, "adamw", 2)


def core(name: str, dtype: torch.dtype, rank: int) -> bool:
    """The cases that stand for all others where a compiler is older: every kernel, a small and a large rank."""
    if dtype == torch.bfloat16:
        wide = rank == 128 and name in ("deterministic", "accumulate, odd n")
        return rank == 12 or wide or name in ("head", "bias", "losses of a head")
    return name in ("flat, 1 groups", "automatic, 24 groups, clients", "adamw")


def all_launches(parts: Sequence[str], everything: bool = True) -> list[Launch]:
    """Every launch of every case (or of the core ones) on every part, each distinct kernel once."""
    found: dict[tuple, Launch] = {}
    for arch in parts:
        for name, dtype, rank, call in cases():
            if not (everything or core(name, dtype, rank)):
                continue
            with recorded(name, str(dtype).removeprefix("torch."), rank, arch) as launches:
                call()
            for one in launches:
                same = (arch, one.kernel, *map(str, (one.types, one.constants, one.attributes, one.options)))
                found.setdefault(same, one)
    return list(found.values())
