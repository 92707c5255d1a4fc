"""Counts bytes of the compiled kernels in the PTX emulator against their floors: benchmarks/data/emulator_counts.csv.

Unique bytes are the 32-byte sectors that a launch reads or writes at least once (its least traffic to device memory),
summed over an operation's launches; sectors are what warps ask of the caches. Buffers that an atomic sum needs zeroed
are counted apart, in ``fill_bytes``: torch fills them, not a kernel of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from csv_tables import write_table
from emulator.launch import emulated

import ffalora_kernels as ffk
from ffalora_kernels import Segments, traffic
from ffalora_kernels.triton import configs, launch

CSV = Path(__file__).parent / "data" / "emulator_counts.csv"
COLUMNS = (
    "op", "shape", "variant", "part", "programs", "floor_bytes", "allowed_bytes", "unique_bytes", "unique_to_allowed",
    "unique_to_floor", "fill_bytes", "sectors_to_unique", "atomic_updates",
)  # fmt: skip
RAGGED = [100, 3, 0, 77, 128, 61, 128, 90]


@dataclass(frozen=True)
class CountCase:
    """One call of an operation and what it may move.

    Attributes:
        op, shape, variant: of its row.
        cap: 80 or 90, the emulated part.
        floor: least bytes of the operation.
        extra: what the derivation allows above it.
        call: runs it.
        fill: bytes that torch zeroes for it.
    """

    op: str
    shape: str
    variant: str
    cap: int
    floor: int
    extra: int
    call: Callable[[], object]
    fill: int = 0


def count(case: CountCase) -> dict:
    """Runs a case, as it would be launched on its part, on that part's emulator; its row."""
    own = mock.patch.object(launch, "DEFAULT_ARCHITECTURE", f"sm_{case.cap}")
    with own, emulated(case.cap) as reports, ffk.use_backend("triton"):
        case.call()
    total = {name: sum(r.get(name, 0) for _, r in reports) for name in _COUNTERS}
    unique = total["unique_read_bytes"] + total["unique_write_bytes"]
    # The emulator counts an atomic update as a store of its sectors; they are reported apart.
    sectors = total["read_sectors"] + total["write_sectors"]
    allowed = case.floor + case.extra
    row = (
        case.op, case.shape, case.variant, f"sm_{case.cap}", reports[0][1]["programs"], case.floor, allowed, unique,
        round(unique / allowed, 4), round(unique / case.floor, 4), case.fill, round(32 * sectors / unique, 4),
        total["atomics"],
    )  # fmt: skip
    print(dict(zip(COLUMNS, row, strict=True)), flush=True)
    return dict(zip(COLUMNS, row, strict=True))


_COUNTERS = ("unique_read_bytes", "unique_write_bytes", "read_sectors", "write_sectors", "atomics")


def backward(cap: int, lengths: list[int], n: int, r: int, deterministic: bool, shape: str) -> CountCase:
    """One bf16 ``backward`` with its dh reduction."""
    segments, dtype = Segments.from_lengths(lengths), torch.bfloat16
    m, s = segments.n_tokens, len(lengths)
    dy, h, b = torch.randn(m, n).to(dtype), torch.randn(m, r).to(dtype), torch.randn(1, n, r).to(dtype)
    arena, squares = torch.empty(s, n * r), torch.empty(s, 1, dtype=torch.float64)
    config = configs.choose("backward", f"sm_{cap}", 2, r)
    extra = traffic.backward_partials(m, n, r, 2, config.block_n, deterministic) if deterministic else 0
    chunk, programs = configs.chunk_tokens(r), s * -(-n // config.block_n)
    if configs.walk_chunks(f"sm_{cap}", programs, -(-segments.longest // chunk)) == "split":
        extra += traffic.backward_chunks(m, n, r, s, chunk)
    return CountCase(
        "backward", shape, "deterministic" if deterministic else "atomic", cap,
        traffic.backward_floor(m, n, r, s, 2), extra,
        lambda: ffk.backward(dy, h, b, segments, 1.0, arena, 0, squares, deterministic=deterministic),
        fill=0 if deterministic else m * r * 4,
    )  # fmt: skip


def expand(cap: int, m: int, n: int, r: int, shape: str = "") -> CountCase:
    """One bf16 ``expand_``."""
    y, h, b = torch.randn(m, n).bfloat16(), torch.randn(m, r).bfloat16(), torch.randn(1, n, r).bfloat16()
    return CountCase(
        "expand_", shape or f"M{m} N{n} R{r}", "", cap, traffic.expand_floor(m, n, r, 2), 0,
        lambda: ffk.expand_(y, h, b, Segments.uniform(1, m), 1.0),
    )  # fmt: skip


def clip(cap: int, s: int, p: int, c: int, given: bool, shape: str = "") -> CountCase:
    """One flat ``clip_reduce_``."""
    arena, total = torch.randn(s, p), torch.zeros(c, p, dtype=torch.float64)
    limit, squares = torch.ones(c, 1, dtype=torch.float64), arena.double().square().sum(1, keepdim=True)
    client, columns = torch.arange(s, dtype=torch.int32) % c, torch.tensor([0, p], dtype=torch.int32)
    return CountCase(
        "clip_reduce_", shape or f"S{s} P{p} C{c}", "norms given" if given else "norms from the arena", cap,
        traffic.clip_reduce_floor(s, p, c, 1, given), 0,
        lambda: ffk.clip_reduce_(total, arena, client, limit, columns, squares if given else None),
    )  # fmt: skip


def privatize(cap: int, c: int, p: int, moments: int, shape: str = "") -> CountCase:
    """One noisy step: SGD, momentum or AdamW."""
    state, total = torch.randn(c, p), torch.randn(c, p, dtype=torch.float64)
    one, ids = torch.ones(c, dtype=torch.float64), torch.arange(c)
    rows = {name: torch.zeros(c, p) for name in ("exp_avg", "exp_avg_sq")[:moments]}
    optimizer = "adamw" if moments == 2 else "sgd"
    return CountCase(
        "privatize_step_", shape or f"C{c} P{p}", ("sgd", "momentum", "adamw")[moments], cap,
        traffic.privatize_step_floor(c, p, moments), 0,
        lambda: ffk.privatize_step_(
            state, total, client_id=ids, step=ids, noise_std=one, denominator=one, lr=one, key=1, optimizer=optimizer,
            age=ids + 1, beta1=0.9, **rows,
        ),
    )  # fmt: skip


def outer(cap: int, lengths: list[int], n: int, k: int, shape: str = "") -> CountCase:
    """One bf16 ``outer`` (the gradient of a trained ``a`` has n = R)."""
    segments = Segments.from_lengths(lengths)
    p, q = torch.randn(segments.n_tokens, n).bfloat16(), torch.randn(segments.n_tokens, k).bfloat16()
    arena = torch.empty(len(lengths), n * k)
    return CountCase(
        "outer", shape or f"{len(lengths)}x{lengths[0]} N{n} K{k}", "", cap,
        traffic.outer_floor(segments.n_tokens, n, k, len(lengths), 2), 0,
        lambda: ffk.outer(p, q, segments, 1.0, arena, 0),
    )  # fmt: skip


def head_loss(cap: int, m: int, d: int, v: int) -> CountCase:
    """The kernels of a bf16 ``linear_cross_entropy``: its products are the vendor's and not counted."""
    x, w = torch.randn(m, d).bfloat16(), torch.randn(v, d).bfloat16()
    segments = Segments.uniform(4, m // 4)
    return CountCase(
        "linear_cross_entropy", f"M{m} V{v}", "", cap, traffic.softmax_gradient_floor(m, v, 2),
        traffic.segment_sums_floor(m, 4),
        lambda: ffk.linear_cross_entropy(x, w, None, torch.arange(m), segments),
    )  # fmt: skip


def cases() -> list[CountCase]:
    """Every case on sm_80 and sm_90."""
    made = []
    for cap in (80, 90):
        for deterministic in (True, False):
            made.append(backward(cap, [128] * 8, 768, 8, deterministic, "B8 T128 N768 R8"))
            made.append(backward(cap, [128] * 2, 4096, 16, deterministic, "B2 T128 N4096 R16"))
            made.append(backward(cap, RAGGED, 768, 8, deterministic, f"ragged {sum(RAGGED)} tokens N768 R8"))
        made.append(backward(cap, [128] * 2, 1024, 128, True, "B2 T128 N1024 R128"))
        made.append(expand(cap, 1024, 768, 8))
        made.append(expand(cap, 256, 4096, 16))
        made.append(clip(cap, 32, 20480, 1, True))
        made.append(clip(cap, 32, 20480, 1, False))
        made.append(clip(cap, 12, 8192, 3, True))
        made += [privatize(cap, 2, 8192, moments) for moments in range(3)]
        made.append(outer(cap, [128] * 4, 8, 1024))
        made.append(head_loss(cap, 32, 16, 9000))
    return made


def main() -> None:
    """Counts every case and writes the table."""
    rows = [count(case) for case in cases()]
    write_table(CSV, COLUMNS, rows)


if __name__ == "__main__":
    main()
