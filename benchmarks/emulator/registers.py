"""Registers of all threads that run together, and operands as numbers."""

from __future__ import annotations

import re

import numpy as np

from .formats import BITS, NUMBER, WIDTH, Array
from .parser import Instruction, Kernel, PTXError, elements

#: Where addresses of local memory start.
LOCAL_BASE = 1 << 40
Mask = Array | None
_ADDRESS = re.compile(r"(.+?)\s*(\+\s*-|[+-])\s*(0x[0-9a-fA-F]+|\d+)$")


class Registers:
    """What the threads of some programs of a grid hold; an instruction reads and writes all of them at once.

    Args:
        kernel: whose registers.
        grid: programs along x, y, z.
        programs: indices in the grid of those that run together.
        block: threads of each.

    Attributes:
        thread: of each thread, its number in its program.
        program, slot: of each thread, its program's index in the grid and among those that run together.
        current: the instruction at work, for messages.
    """

    current: Instruction

    def __init__(self, kernel: Kernel, grid: tuple[int, ...], programs: Array, block: int) -> None:
        self.kernel, self.grid, self.block = kernel, grid, block
        self.n_programs, self.threads = len(programs), block * len(programs)
        self.held: dict[str, Array] = {}
        self.thread = np.tile(np.arange(block, dtype=np.uint32), len(programs))
        self.program = np.repeat(programs, block).astype(np.int32)
        self.slot = np.repeat(np.arange(len(programs), dtype=np.int64), block)
        self.warp = np.arange(self.threads) // 32
        self.warp_in_program = (self.thread // 32).astype(np.int16)

    def register_type(self, name: str) -> str:
        """Declared type of a register."""
        own = self.kernel.register_types.get("=" + name)
        if own:
            return own
        prefix = re.match(r"(%?[A-Za-z_$]+)\d+$", name)
        if prefix is None or prefix[1] not in self.kernel.register_types:
            raise PTXError(f"register {name} is not declared, at {self.current}")
        return self.kernel.register_types[prefix[1]]

    def register(self, name: str) -> Array:
        """What a register holds, in each thread."""
        held = self.held.get(name)
        if held is None:
            raise PTXError(f"read of register {name}, which nobody set, at {self.current}")
        return held

    def set(self, name: str, value: object, mask: Mask) -> None:
        """Writes a register in the threads of a mask; narrower values are extended by their sign."""
        if name == "_":
            return
        kind = self.register_type(name)
        dtype = np.dtype(bool if kind == "pred" else BITS[WIDTH[kind]])
        new = np.asarray(value)
        if new.dtype != dtype:
            if kind == "pred":
                new = new.astype(bool)
            elif new.dtype.itemsize == dtype.itemsize:
                new = new.view(dtype)
            elif new.dtype.kind == "i":
                new = new.astype(np.int64).astype(dtype)
            else:
                new = new.view(BITS[new.dtype.itemsize]).astype(dtype)
        if new.shape != (self.threads,):
            new = np.broadcast_to(new, (self.threads,))
        if mask is None:
            self.held[name] = new if new.flags.owndata else new.copy()
        else:
            old = self.held.get(name)
            self.held[name] = np.where(mask, new, np.zeros(self.threads, dtype) if old is None else old)

    def value(self, operand: str, kind: str) -> Array:
        """An operand as numbers of a type, in each thread or the same in all; bfloat16, tf32 and pairs as bits."""
        if kind == "pred":
            if operand[0] in "-0123456789":
                return np.bool_(int(operand, 0) != 0)
            return ~self.register(operand[1:]) if operand[0] == "!" else self.register(operand)
        kind = "b32" if kind == "tf32" else kind
        width = WIDTH[kind]
        if operand[0] in "-0123456789":
            return immediate(operand, kind)
        if operand.startswith("{"):
            held = self._packed(elements(operand), width)
        elif operand in self.held:
            held = self.held[operand]
        elif operand in self.kernel.shared:
            held = np.asarray(self.kernel.shared[operand], BITS[width])
        elif operand in self.kernel.local:
            held = np.asarray((LOCAL_BASE if width == 8 else 0) + self.kernel.local[operand], BITS[width])
        else:
            special = self.special(operand)
            held = self.register(operand) if special is None else special
        if held.dtype.itemsize != width:
            held = held.astype(BITS[width])
        return held if kind not in NUMBER else held.view(NUMBER[kind])

    def bits(self, operand: str, kind: str) -> Array:
        """An operand of a type as unsigned bits, immediates among them."""
        held = np.asarray(self.value(operand, kind))
        return held if held.dtype == bool else held.view(BITS[held.dtype.itemsize])

    def each(self, operand: str, kind: str) -> Array:
        """:meth:`value` over all threads, whether or not it is the same in each."""
        return np.broadcast_to(self.value(operand, kind), (self.threads,))

    def each_bits(self, operand: str, kind: str) -> Array:
        """:meth:`bits` over all threads."""
        return np.broadcast_to(self.bits(operand, kind), (self.threads,))

    def active(self, mask: Mask) -> Array:
        """Indices of the threads of a mask."""
        return np.arange(self.threads) if mask is None else np.flatnonzero(mask)

    def by_warp(self, values: Array) -> Array:
        """``[warps, 32]`` of an array over threads (or a scalar)."""
        return np.broadcast_to(values, (self.threads,)).reshape(-1, 32)

    def _packed(self, parts: list[str], width: int) -> Array:
        step = width * 8 // len(parts)
        held = np.zeros(self.threads, BITS[width])
        for at, part in enumerate(parts):
            held |= self.each_bits(part, f"b{step}").astype(BITS[width]) << BITS[width](step * at)
        return held

    def special(self, name: str) -> Array | None:
        """A special register, or None."""
        base, _, axis = name.partition(".")
        if base in ("%ctaid", "%nctaid"):
            at = "xyz".index(axis)
            if base == "%nctaid":
                return np.full(self.threads, self.grid[at], np.uint32)
            return (self.program // int(np.prod(self.grid[:at], dtype=np.int64)) % self.grid[at]).astype(np.uint32)
        if base in ("%tid", "%ntid"):
            if axis == "x":
                return self.thread if base == "%tid" else np.full(self.threads, self.block, np.uint32)
            return np.full(self.threads, base == "%ntid", np.uint32)
        if name in ("%laneid", "%warpid"):
            return self.thread % np.uint32(32) if name == "%laneid" else self.thread // np.uint32(32)
        return np.zeros(self.threads, np.uint64) if name.startswith(("%clock", "%globaltimer")) else None

    def address(self, operand: str) -> Array:
        """The address in ``[register + offset]``, in each thread."""
        inside, offset = operand.strip()[1:-1].strip(), 0
        found = _ADDRESS.match(inside)
        if found:
            inside, offset = found[1].strip(), int(found[3], 0) * (-1 if "-" in found[2] else 1)
        if inside in self.kernel.shared:
            return np.full(self.threads, self.kernel.shared[inside] + offset, np.int64)
        if inside in self.kernel.local:
            return np.full(self.threads, self.kernel.local[inside] + offset, np.int64)
        if inside[0].isdigit():
            return np.full(self.threads, int(inside, 0) + offset, np.int64)
        return self.register(inside).astype(np.int64) + offset


def immediate(text: str, kind: str) -> Array:
    """A literal as a scalar of a type; ``0f…`` and ``0d…`` are bits of float32 and float64."""
    dtype = NUMBER.get(kind, BITS[WIDTH[kind]])
    if text[:2] in ("0f", "0F", "0d", "0D"):
        bits = BITS[4 if text[1] in "fF" else 8](int(text[2:], 16))
        return bits.view(dtype) if bits.dtype.itemsize == np.dtype(dtype).itemsize else bits.astype(dtype)
    if kind in ("f16", "f32", "f64") and not text.startswith("0x"):
        return dtype(float(text))
    width = WIDTH[kind]
    return BITS[width](int(text.rstrip("U"), 0) & ((1 << 8 * width) - 1)).view(dtype)
