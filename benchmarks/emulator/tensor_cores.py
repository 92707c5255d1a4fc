"""``ldmatrix`` and ``stmatrix``, ``mma.sync`` of one warp, ``wgmma`` of four: products in float32.

Layouts of fragments and of shared-memory descriptors are those of the PTX manual (mma.m16n8k*, wgmma.m64nNk*). A
product is computed when it is issued: its asynchrony is not emulated.
"""

from __future__ import annotations

import re

import numpy as np

from .formats import Array, from_half, halves, tf32
from .machine import Machine, instruction
from .parser import Instruction, elements
from .registers import Mask
from .transfers import shared_addresses, touch_shared

_LANE = np.arange(32)
_ROW, _PAIR = _LANE >> 2, _LANE & 3
_WARP_GROUP = 128
_TYPES = ("f32", "f16", "bf16", "tf32")
#: Swizzle of a descriptor: bytes of a row, and how many address bits are mixed.
_SWIZZLE = {0: (16, 0), 1: (128, 7), 2: (64, 3), 3: (32, 1)}


def _shape(x: Instruction) -> tuple[int, int, int]:
    name = next(mod for mod in x.mods if re.fullmatch(r"m\d+n\d+k\d+", mod))
    m, n, k = map(int, re.findall(r"\d+", name))
    return m, n, k


def _matrices(x: Instruction) -> int:
    return next((int(mod[1:]) for mod in x.mods if mod in ("x2", "x4")), 1)


def _rows(m: Machine, x: Instruction, operand: str, mask: Mask, writing: bool) -> tuple[Array, Array]:
    """Addresses ``[warps, 8 · matrices]`` of the rows that lanes of the active warps point at, and those warps."""
    lanes = m.active(mask)
    used = lanes[lanes % 32 < 8 * _matrices(x)]
    at = shared_addresses(m, m.address(operand), 16, used)
    touch_shared(m, at, 16, used, writing)
    return at.reshape(-1, 8 * _matrices(x)), np.unique(lanes // 32)


@instruction("ldmatrix")
def load_matrices(m: Machine, x: Instruction, mask: Mask) -> None:
    """``ldmatrix``: 8 x 8 matrices of 16-bit numbers, two neighbours of a row to each lane."""
    at, warps = _rows(m, x, x.args[1], mask, False)
    if not m.shared_written[at].all():
        m.fail("smem-uninit", "ldmatrix of shared memory that nobody wrote")
    words = m.shared[: m.shared.size // 2 * 2].view(np.uint16)
    for which, name in enumerate(elements(x.args[0])):
        matrix = words[at[:, 8 * which : 8 * which + 8, None] // 2 + np.arange(8)]
        if "trans" in x.mods:
            matrix = matrix.transpose(0, 2, 1)
        pairs = np.ascontiguousarray(matrix).reshape(-1, 32, 2).astype(np.uint32)
        out = np.zeros((m.threads // 32, 32), np.uint32)
        out[warps] = pairs[:, :, 0] | pairs[:, :, 1] << np.uint32(16)
        m.set(name, out.reshape(-1), mask)


@instruction("stmatrix")
def store_matrices(m: Machine, x: Instruction, mask: Mask) -> None:
    """``stmatrix``: the reverse of ``ldmatrix``."""
    at, warps = _rows(m, x, x.args[0], mask, True)
    m.shared_written[at[:, :, None] + np.arange(16)] = True
    words = m.shared[: m.shared.size // 2 * 2].view(np.uint16)
    for which, name in enumerate(elements(x.args[1])):
        held = m.by_warp(m.bits(name, "b32"))[warps]
        low, high = (held & np.uint32(0xFFFF)).astype(np.uint16), (held >> np.uint32(16)).astype(np.uint16)
        matrix = np.stack([low, high], -1).reshape(-1, 8, 8)
        if "trans" in x.mods:
            matrix = matrix.transpose(0, 2, 1)
        words[at[:, 8 * which : 8 * which + 8, None] // 2 + np.arange(8)] = matrix


def _fragment(m: Machine, operand: str, kind: str, rows: int, k: int, by_column: bool) -> Array:
    """``[warps, rows, k]`` of an operand in registers; that of B is held by columns."""
    out = np.zeros((m.threads // 32, rows, k), np.float32)
    blocks = 1 if by_column else 2
    for at, name in enumerate(elements(operand)):
        words = m.by_warp(m.bits(name, "b32"))
        row, step = _ROW + 8 * (at % blocks), at // blocks
        if kind == "tf32":
            out[:, row, _PAIR + 4 * step] = tf32(words)
        else:
            pair = halves(words, kind)
            for half in (0, 1):
                out[:, row, 2 * _PAIR + half + 8 * step] = pair[:, :, half]
    return out


@instruction("mma")
def multiply_warp(m: Machine, x: Instruction, mask: Mask) -> None:
    """``mma.sync``: ``D = A B + C`` of one warp, 16 x 8."""
    rows, n, k = _shape(x)
    _, a_kind, b_kind, _ = (mod for mod in x.mods if mod in _TYPES)
    if rows != 16 or n != 8:
        m.fail("unsupported", str(x))
    a = _fragment(m, x.args[1], a_kind, rows, k, by_column=False)
    b = _fragment(m, x.args[2], b_kind, n, k, by_column=True)
    product = np.matmul(a, b.transpose(0, 2, 1))
    for at, (to, add) in enumerate(zip(elements(x.args[0]), elements(x.args[3]), strict=True)):
        found = product[:, _ROW + 8 * (at >> 1), 2 * _PAIR + (at & 1)] + m.by_warp(m.value(add, "f32"))
        m.set(to, np.ascontiguousarray(found).reshape(-1), mask)
    warps = m.count_active(mask) // 32
    m.counts["tensor_flops"] += 2 * rows * n * k * warps
    m.counts["mma"] += warps


def _described(descriptors: Array, rows: int, k: int, size: int, by_row_block: bool) -> Array:
    """Byte offsets ``[groups, rows, k]`` in shared memory of an operand that descriptors describe."""
    wide = descriptors.astype(np.int64)
    start, leading, stride = ((wide >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    width, mixed = _SWIZZLE[int(wide[0] >> 62 & 3)]
    row, column = np.arange(rows)[:, None], np.arange(k)[None, :]
    leading, stride = leading[:, None, None], stride[:, None, None]
    if not by_row_block:
        if mixed:
            at = ((row % 8) * width + column * size)[None] + (row // 8)[None] * stride
        else:
            inner = (row % 8) * 16 + column * size % 16
            at = inner[None] + (row // 8)[None] * stride + (column * size // 16)[None] * leading
    else:
        across = width // size
        inner = row % across * size + column % 8 * width
        outer, step = (leading, stride) if mixed else (stride, leading)
        at = inner[None] + (row // across)[None] * outer + (column // 8)[None] * step
    at = at + start[:, None, None]
    return at ^ ((at >> 7 & mixed) << 4)


def _read_operand(m: Machine, offsets: Array, groups: Array, kind: str) -> Array:
    """Numbers at these offsets of the shared memory of each group's program."""
    size = 4 if kind == "tf32" else 2
    slots = m.slot[groups * _WARP_GROUP]
    if (offsets + size > m.shared_size).any():
        m.fail("smem-oob", "wgmma descriptor")
    at = offsets + slots[:, None, None] * m.shared_size
    if not m.shared_written[at].all():
        m.fail("smem-uninit", "wgmma operand in shared memory that nobody wrote")
    if m.shared_watch.written_now(at, slots[:, None, None]):
        m.fail("smem-race", "wgmma operand written in the same barrier epoch")
    words = m.shared[: m.shared.size // size * size]
    if size == 4:
        return tf32(words.view(np.uint32)[at // 4])
    return from_half(words.view(np.uint16)[at // 2], kind)


def _group_fragment(m: Machine, operand: str, groups: Array, kind: str, k: int) -> Array:
    """``[groups, 64, k]`` of an A operand in registers."""
    lane = np.arange(_WARP_GROUP)
    row, pair = 16 * (lane >> 5) + (lane & 31) // 4, lane & 3
    out = np.zeros((len(groups), 64, k), np.float32)
    for at, name in enumerate(elements(operand)):
        words = m.each_bits(name, "b32").reshape(-1, _WARP_GROUP)[groups]
        rows, step = row + 8 * (at & 1), at >> 1
        if kind == "tf32":
            out[:, rows, pair + 4 * step] = tf32(words)
        else:
            for half in (0, 1):
                out[:, rows, 2 * pair + half + 8 * step] = halves(words, kind)[:, :, half]
    return out


@instruction("wgmma")
def multiply_group(m: Machine, x: Instruction, mask: Mask) -> None:
    """``wgmma.mma_async``: ``D = A B (+ D)`` of four warps, 64 x N; its fences do nothing here."""
    if "mma_async" not in x.mods:
        return
    _, n, k = _shape(x)
    _, a_kind, b_kind = (mod for mod in x.mods if mod in _TYPES)
    groups = np.unique(m.active(mask) // _WARP_GROUP)

    def of_group(operand: str, kind: str) -> Array:
        return m.each(operand, kind).reshape(-1, _WARP_GROUP)[groups, 0]

    flags = [int(arg) for arg in x.args[4:]]
    sign_a, sign_b, transposed = flags[0], flags[1], flags[2:]
    size = 4 if b_kind == "tf32" else 2
    by_rows = bool(transposed and transposed[-1])
    b = _read_operand(m, _described(of_group(x.args[2], "b64"), n, k, size, by_rows), groups, b_kind)
    if x.args[1].startswith("{"):
        a = _group_fragment(m, x.args[1], groups, a_kind, k)
    else:
        offsets = _described(of_group(x.args[1], "b64"), 64, k, size, len(transposed) == 2 and bool(transposed[0]))
        a = _read_operand(m, offsets, groups, a_kind)
    product = np.matmul(a * sign_a, (b * sign_b).transpose(0, 2, 1))
    keep = of_group(x.args[3], "pred")[:, None]
    lane = np.arange(_WARP_GROUP)
    row, pair = 16 * (lane >> 5) + (lane & 31) // 4, lane & 3
    for at, name in enumerate(elements(x.args[0])):
        found = product[:, row + 8 * (at % 4 >> 1), 8 * (at // 4) + 2 * pair + (at & 1)]
        out = np.zeros((m.threads // _WARP_GROUP, _WARP_GROUP), np.float32)
        if name in m.held:
            out = m.held[name].view(np.float32).reshape(out.shape).copy()
        out[groups] = np.where(keep, out[groups] + found, found)
        m.set(name, out.reshape(-1), mask)
    m.counts["tensor_flops"] += 2 * 64 * n * k * len(groups)
    m.counts["wgmma"] += len(groups)
