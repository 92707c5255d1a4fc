"""Logic, shifts, bit fields and permutations of bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .formats import BITS, WIDTH, Array
from .machine import Machine, instruction
from .parser import Instruction
from .registers import Mask

_LOGIC: dict[str, Callable] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


def _unsigned(kind: str) -> str:
    return kind if kind == "pred" else f"b{8 * WIDTH[kind]}"


@instruction(*_LOGIC)
def logic(m: Machine, x: Instruction, mask: Mask) -> None:
    """``and``, ``or``, ``xor`` of bits and of predicates."""
    kind = _unsigned(x.mods[-1])
    m.set(x.args[0], _LOGIC[x.op](m.value(x.args[1], kind), m.value(x.args[2], kind)), mask)


@instruction("not")
def invert(m: Machine, x: Instruction, mask: Mask) -> None:
    """``not``."""
    m.set(x.args[0], ~m.each(x.args[1], _unsigned(x.mods[-1])), mask)


@instruction("shl", "shr")
def shift(m: Machine, x: Instruction, mask: Mask) -> None:
    """``shl`` and ``shr``; beyond the width only the sign is left."""
    kind = x.mods[-1]
    held, by = m.each(x.args[1], kind), m.each(x.args[2], "b32").astype(np.int64)
    beyond = by >= 8 * WIDTH[kind]
    step = np.where(beyond, 0, by).astype(held.dtype)
    if x.op == "shl":
        found, rest = held << step, np.zeros_like(held)
    else:
        found, rest = held >> step, np.where(held < 0, -1, 0).astype(held.dtype)
    m.set(x.args[0], np.where(beyond, rest, found), mask)


@instruction("shf")
def funnel_shift(m: Machine, x: Instruction, mask: Mask) -> None:
    """``shf``: 32 bits out of two registers side by side."""
    low, high, by = (m.each(arg, "b32").astype(np.uint64) for arg in x.args[1:4])
    by = by & np.uint64(31) if "wrap" in x.mods else np.minimum(by, np.uint64(32))
    both = high << np.uint64(32) | low
    found = both << by >> np.uint64(32) if "l" in x.mods else both >> by
    m.set(x.args[0], found.astype(np.uint32), mask)


def _field(m: Machine, x: Instruction, width: int, at: int) -> tuple[Array, Array]:
    """First bit and number of bits of a field, within the width."""
    first, length = (m.each(arg, "b32").astype(np.int64) & 0xFF for arg in x.args[at : at + 2])
    first = np.minimum(first, width)
    return first, np.minimum(length, width - first)


def _ones(length: Array, dtype: type) -> Array:
    """Numbers whose lowest ``length`` bits are set."""
    whole = length == 8 * np.dtype(dtype).itemsize
    return np.where(whole, ~dtype(0), (dtype(1) << np.where(whole, 0, length).astype(dtype)) - dtype(1))


@instruction("bfe")
def extract_field(m: Machine, x: Instruction, mask: Mask) -> None:
    """``bfe``: a bit field, by the sign of its highest bit where the type is signed."""
    kind = x.mods[-1]
    dtype, width = BITS[WIDTH[kind]], 8 * WIDTH[kind]
    first, length = _field(m, x, width, 2)
    found = m.each_bits(x.args[1], kind) >> np.minimum(first, width - 1).astype(dtype) & _ones(length, dtype)
    found = np.where(length > 0, found, dtype(0))
    if kind[0] == "s":
        negative = (length > 0) & (found >> np.maximum(length - 1, 0).astype(dtype) & dtype(1) == 1)
        found = np.where(negative, found | ~_ones(length, dtype), found)
    m.set(x.args[0], found, mask)


@instruction("bfi")
def insert_field(m: Machine, x: Instruction, mask: Mask) -> None:
    """``bfi``: the second number with a bit field of it replaced by the first number's lowest bits."""
    kind = x.mods[-1]
    dtype, width = BITS[WIDTH[kind]], 8 * WIDTH[kind]
    first, length = _field(m, x, width, 3)
    step = np.minimum(first, width - 1).astype(dtype)
    field = np.where(length > 0, _ones(length, dtype) << step, dtype(0))
    new, old = (m.each_bits(arg, kind) for arg in x.args[1:3])
    m.set(x.args[0], (old & ~field) | (new << step & field), mask)


@instruction("lop3")
def logic_of_three(m: Machine, x: Instruction, mask: Mask) -> None:
    """``lop3``: any function of three bits, by its table."""
    a, b, c = (m.each(arg, "b32") for arg in x.args[1:4])
    table, found = int(x.args[4], 0), np.zeros(m.threads, np.uint32)
    for row in range(8):
        if table >> row & 1:
            found |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    m.set(x.args[0], found, mask)


@instruction("prmt")
def permute_bytes(m: Machine, x: Instruction, mask: Mask) -> None:
    """``prmt``: four bytes chosen among eight, or their signs."""
    if len(x.mods) > 1:
        m.fail("unsupported", str(x))
    low, high, choice = (m.each(arg, "b32").astype(np.uint64) for arg in x.args[1:4])
    both, found = high << np.uint64(32) | low, np.zeros(m.threads, np.uint64)
    for byte in range(4):
        which = choice >> np.uint64(4 * byte) & np.uint64(15)
        chosen = both >> ((which & np.uint64(7)) * np.uint64(8)) & np.uint64(255)
        sign = np.where(chosen & np.uint64(128), np.uint64(255), np.uint64(0))
        found |= np.where(which & np.uint64(8), sign, chosen) << np.uint64(8 * byte)
    m.set(x.args[0], found.astype(np.uint32), mask)


@instruction("popc", "clz")
def count_bits(m: Machine, x: Instruction, mask: Mask) -> None:
    """``popc`` counts ones, ``clz`` the zeros above the highest one."""
    kind = x.mods[-1]
    width = 8 * WIDTH[kind]
    numbers = m.each_bits(x.args[1], kind).tolist()
    found = [n.bit_count() if x.op == "popc" else width - n.bit_length() for n in numbers]
    m.set(x.args[0], np.array(found, np.uint32), mask)
