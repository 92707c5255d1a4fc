"""Memory of the emulated device: allocations with red zones, and who touched what."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .formats import Array

#: Bytes between allocations, which nobody may touch.
RED_ZONE = 256
#: Marks a place that several programs or warps touched.
SEVERAL = -2
NOBODY = -1


@dataclass(frozen=True)
class Allocation:
    """Bytes start … end-1 of the device's memory."""

    start: int
    end: int
    name: str


class Device:
    """Flat memory; the first address is 0x10000. ``written`` says which bytes hold a number that somebody wrote."""

    BASE = 1 << 16

    def __init__(self, size: int = 1 << 28) -> None:
        self.memory = np.full(size, 0xCC, np.uint8)
        self.written = np.zeros(size, bool)
        self.top = self.BASE
        self.allocations: list[Allocation] = []

    def allocate(self, content: ArrayLike, name: str = "") -> int:
        """Copies an array's bytes to the device; their address."""
        data = np.ascontiguousarray(content).view(np.uint8).reshape(-1)
        start = -(-self.top // RED_ZONE) * RED_ZONE + RED_ZONE
        self.top = start + data.size
        self.memory[start : self.top] = data
        self.written[start : self.top] = True
        self.allocations.append(Allocation(start, self.top, name))
        return start

    def read(self, address: int, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """A copy of an array on the device."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.memory[address : address + size].view(dtype).reshape(shape).copy()


class GlobalWatch:
    """Bounds, alignment and races of accesses to device memory; returns what is wrong in words, or None."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.starts = np.array([a.start for a in device.allocations], np.int64)
        self.ends = np.array([a.end for a in device.allocations], np.int64)
        granules = device.top // 2 + 64  # two bytes each: last program that wrote, read or atomically updated it
        self.touched = {kind: np.full(granules, NOBODY, np.int32) for kind in ("writes", "reads", "updates")}

    def where(self, address: int) -> str:
        """An address in words."""
        at = int(np.searchsorted(self.starts, address, side="right")) - 1
        if at < 0:
            return f"{address:#x}"
        found = self.device.allocations[at]
        return f"'{found.name}'+{address - found.start} (size {found.end - found.start})"

    def bounds(self, addresses: Array, size: int) -> str | None:
        """Addresses outside of every allocation."""
        at = np.searchsorted(self.starts, addresses, side="right") - 1
        outside = (at < 0) | (addresses + size > self.ends[np.maximum(at, 0)])
        if not outside.any():
            return None
        first = int(addresses[np.flatnonzero(outside)[0]])
        return f"{int(outside.sum())} lanes, e.g. address {first:#x} = {self.where(first)}, {size} bytes"

    def race(self, addresses: Array, size: int, programs: Array, kind: str) -> str | None:
        """Two programs of one launch at one place, one of them writing; atomic updates may meet each other."""
        for granule in range(max(1, size // 2)):
            places = addresses // 2 + granule
            met = np.zeros(len(places), bool)
            for earlier, by in self.touched.items():
                if kind == "writes" or earlier == "writes" or (kind != earlier):
                    met |= (by[places] != NOBODY) & (by[places] != programs)
            if met.any():
                lane = int(np.flatnonzero(met)[0])
                return (
                    f"program {int(programs[lane])} {kind} {self.where(int(addresses[lane]))}, "
                    "which another program touches"
                )
            by = self.touched[kind]
            by[places] = np.where((by[places] != NOBODY) & (by[places] != programs), SEVERAL, programs)
            if kind == "writes":
                order = np.argsort(places, kind="stable")
                sorted_places, sorted_programs = places[order], programs[order]
                both = (sorted_places[1:] == sorted_places[:-1]) & (sorted_programs[1:] != sorted_programs[:-1])
                if both.any():
                    pair = int(sorted_programs[:-1][both][0]), int(sorted_programs[1:][both][0])
                    return f"programs {pair[0]} and {pair[1]} write the same address"
        return None


class SharedWatch:
    """Races between warps of a program within one barrier epoch, on words of four bytes."""

    def __init__(self, programs: int, size: int) -> None:
        words = (programs * size + 3) // 4
        self.epoch = np.zeros(programs, np.int32)
        self.write_epoch, self.read_epoch = np.full(words, NOBODY, np.int32), np.full(words, NOBODY, np.int32)
        self.writer, self.reader = np.full(words, NOBODY, np.int16), np.full(words, NOBODY, np.int16)

    def race(self, addresses: Array, size: int, programs: Array, warps: Array, writing: bool) -> str | None:
        """What is wrong with an access of ``size`` bytes at each (absolute) address by each warp, or None."""
        epoch = self.epoch[programs]
        for word in range(max(1, size // 4)):
            at = addresses // 4 + word
            met = (self.write_epoch[at] == epoch) & (self.writer[at] != warps)
            read_by_others = (self.read_epoch[at] == epoch) & (self.reader[at] != warps)
            if writing:
                met |= read_by_others
            if met.any():
                lane = int(np.flatnonzero(met)[0])
                return (
                    f"{'write' if writing else 'read'} of word {int(at[lane])} by warp {int(warps[lane])} after an "
                    f"access by warp {int(self.writer[at[lane]])} in the same barrier epoch"
                )
            if writing:
                self.write_epoch[at], self.writer[at] = epoch, warps
            else:
                self.read_epoch[at], self.reader[at] = epoch, np.where(read_by_others, SEVERAL, warps)
        return None

    def written_now(self, addresses: Array, programs: Array) -> bool:
        """Whether a word was written in the epoch in which its program now reads it."""
        return bool((self.write_epoch[addresses // 4] == self.epoch[programs]).any())
