"""Loads, stores, asynchronous copies and atomic updates."""

from __future__ import annotations

import re

import numpy as np

from .formats import BITS, NUMBER, PACKED, WIDTH, Array, from_half, to_half
from .machine import Copy, Machine, instruction
from .parser import Instruction, elements
from .registers import Mask

#: Threads whose shared accesses are one request: 128 bytes.
_WAVEFRONT = 128
_UPDATES = ("add", "min", "max", "exch", "cas", "and", "or", "xor")


def shared_addresses(m: Machine, addresses: Array, size: int, lanes: Array) -> Array:
    """Where accesses of ``size`` bytes of these threads lie in the shared memory of all running programs."""
    inside = addresses[lanes] & 0xFFFFFFFF
    if (inside + size > m.shared_size).any():
        m.fail("smem-oob", f"offset {int(inside.max())}+{size} > {m.shared_size}")
    if (inside % size).any():
        m.fail("misaligned", f"shared access of {size} bytes")
    return inside + m.slot[lanes] * m.shared_size


def touch_shared(m: Machine, at: Array, size: int, lanes: Array, writing: bool) -> None:
    """Refuses races and counts bank conflicts (not of a launch that is observed, which is about device memory)."""
    if m.launch.observer is None:
        _count_wavefronts(m, at, size, lanes)
    wrong = m.shared_watch.race(at, size, m.slot[lanes], m.warp_in_program[lanes], writing)
    if wrong:
        m.fail("smem-race", wrong)


def _count_wavefronts(m: Machine, at: Array, size: int, lanes: Array) -> None:
    group = lanes // max(1, _WAVEFRONT // max(size, 4))
    words = np.concatenate([(group << 34) | (at // 4 + word) for word in range(max(1, size // 4))])
    keys = np.unique(words)
    banks, conflicts = np.unique((keys >> 34) * 32 + (keys & 31), return_counts=True)
    worst = np.zeros(int(group.max()) + 1, np.int64)
    np.maximum.at(worst, banks // 32, conflicts)
    m.counts["shared_wavefronts"] += int(worst.sum())
    m.counts["shared_requests"] += int((worst > 0).sum())


def touch_global(m: Machine, at: Array, size: int, lanes: Array, kind: str) -> None:
    """Checks bounds, alignment and races of an access ('reads', 'writes' or 'updates'), and counts its sectors."""
    wrong = m.watch.bounds(at, size)
    if wrong:
        m.fail(f"oob-{kind}", wrong)
    if (at % size).any():
        m.fail("misaligned", f"{kind} {size} bytes at {m.watch.where(int(at[(at % size) != 0][0]))}")
    wrong = m.watch.race(at, size, m.program[lanes], kind)
    if wrong:
        m.fail("global-race", wrong)
    m.count_sectors(at, size, lanes, kind == "reads")


def _vector(x: Instruction) -> int:
    return next((int(mod[1:]) for mod in x.mods if mod in ("v2", "v4", "v8")), 1)


def _is_shared(x: Instruction) -> bool:
    return "shared" in x.mods or "shared::cta" in x.mods


def _view(buffer: Array, width: int) -> Array:
    return buffer[: buffer.size // width * width].view(BITS[width])


@instruction("ld")
def load(m: Machine, x: Instruction, mask: Mask) -> None:
    """``ld``: from parameters, shared, local or device memory."""
    kind, to = x.mods[-1], elements(x.args[0])
    width = WIDTH[kind]
    if "param" in x.mods:
        return _load_parameter(m, x, mask, to)
    addresses, lanes, size = m.address(x.args[1]), m.active(mask), WIDTH[kind] * _vector(x)
    if lanes.size == 0:
        return None
    if "local" in x.mods:
        return _load_local(m, addresses, lanes, mask, to, width)
    if _is_shared(x):
        at, memory, written = shared_addresses(m, addresses, size, lanes), m.shared, m.shared_written
        touch_shared(m, at, size, lanes, False)
    else:
        at, memory, written = addresses[lanes], m.device.memory, m.device.written
        touch_global(m, at, size, lanes, "reads")
    if not written[at].all():
        m.fail("uninit" if memory is m.device.memory else "smem-uninit", "read of memory that nobody wrote")
    for place, name in enumerate(to):
        held = _view(memory, width)[(at + place * width) // width]
        if kind in ("s8", "s16"):
            held = held.view(NUMBER[kind]).astype(np.int32)
        out = np.zeros(m.threads, held.dtype)
        out[lanes] = held
        m.set(name, out, mask)
    return None


def _load_parameter(m: Machine, x: Instruction, mask: Mask, to: list[str]) -> None:
    found = re.match(r"\[\s*([\w$]+)\s*(?:\+\s*(\d+))?\s*\]", x.args[1])
    if found is None or found[1] not in m.launch.parameters:
        m.fail("unsupported", f"parameter {x.args[1]}")
    kind, start = x.mods[-1], int(found[2] or 0)
    held = np.frombuffer(m.launch.parameters[found[1]], NUMBER[kind], len(to), start)
    for name, number in zip(to, held, strict=True):
        m.set(name, np.full(m.threads, number), mask)


def _load_local(m: Machine, addresses: Array, lanes: Array, mask: Mask, to: list[str], width: int) -> None:
    for place, name in enumerate(to):
        at = (addresses[lanes] & 0xFFFFFF) + place * width
        held = np.stack([m.local[lanes, at + byte] for byte in range(width)], 1)
        out = np.zeros(m.threads, BITS[width])
        out[lanes] = np.ascontiguousarray(held).view(BITS[width])[:, 0]
        m.set(name, out, mask)
    m.counts["local_accesses"] += 1


@instruction("st")
def store(m: Machine, x: Instruction, mask: Mask) -> None:
    """``st``: to shared, local or device memory."""
    kind, sources = x.mods[-1], elements(x.args[1])
    width = WIDTH[kind]
    addresses, lanes, size = m.address(x.args[0]), m.active(mask), width * _vector(x)
    if lanes.size == 0:
        return
    held = [m.each_bits(source, f"b{8 * width}" if kind[0] != "f" else kind)[lanes] for source in sources]
    if "local" in x.mods:
        for place, numbers in enumerate(held):
            at = (addresses[lanes] & 0xFFFFFF) + place * width
            for byte in range(width):
                m.local[lanes, at + byte] = (numbers >> BITS[width](8 * byte)).astype(np.uint8)
        m.counts["local_accesses"] += 1
        return
    if _is_shared(x):
        at, memory, written = shared_addresses(m, addresses, size, lanes), m.shared, m.shared_written
        touch_shared(m, at, size, lanes, True)
    else:
        at, memory, written = addresses[lanes], m.device.memory, m.device.written
        touch_global(m, at, size, lanes, "writes")
    for byte in range(size):
        written[at + byte] = True
    for place, numbers in enumerate(held):
        _view(memory, width)[(at + place * width) // width] = numbers


@instruction("cp")
def copy_asynchronously(m: Machine, x: Instruction, mask: Mask) -> None:
    """``cp.async``: a copy arrives when its own thread waits for its group, and no earlier."""
    if "wait_group" in x.mods or "wait_all" in x.mods:
        behind = 0 if "wait_all" in x.mods else int(x.args[0], 0)
        limit = m.copy_group - behind + ("wait_all" in x.mods)
        _arrive(m, limit if mask is None else np.where(mask, limit, -1))
    elif "commit_group" in x.mods:
        m.copy_group += 1 if mask is None else mask
    elif "async" in x.mods and "bulk" not in x.mods:
        _depart(m, x, mask)
    else:
        m.fail("unsupported", str(x))


def _depart(m: Machine, x: Instruction, mask: Mask) -> None:
    size, lanes = int(x.args[2], 0), m.active(mask)
    if lanes.size == 0:
        return
    to, source = shared_addresses(m, m.address(x.args[0]), size, lanes), m.address(x.args[1])
    data = np.zeros((lanes.size, size), np.uint8)
    wanted = m.each(x.args[3], "b32")[lanes].astype(np.int64) if len(x.args) > 3 else np.full(lanes.size, size)
    reading = wanted > 0
    at = source[lanes][reading]
    if at.size:
        touch_global(m, at, size, lanes[reading], "reads")
        if not m.device.written[at].all():
            m.fail("uninit", "copy of memory that nobody wrote")
        data[reading] = m.device.memory[at[:, None] + np.arange(size)]
    data[np.arange(size) >= wanted[:, None]] = 0
    m.copies.append(Copy(to, data, lanes, m.copy_group[lanes]))


def _arrive(m: Machine, limit: Array) -> None:
    """Writes the copies of each thread whose group is below its limit."""
    waiting = []
    for copy in m.copies:
        done = copy.group < limit[copy.lanes]
        if done.any():
            at = copy.to[done]
            touch_shared(m, at, copy.data.shape[1], copy.lanes[done], True)
            places = at[:, None] + np.arange(copy.data.shape[1])
            m.shared[places], m.shared_written[places] = copy.data[done], True
        if not done.all():
            left = ~done
            waiting.append(Copy(copy.to[left], copy.data[left], copy.lanes[left], copy.group[left]))
    m.copies = waiting


@instruction("atom", "red")
def update(m: Machine, x: Instruction, mask: Mask) -> None:
    """``atom`` and ``red``: applied thread by thread, in order."""
    kind, lanes = x.mods[-1], m.active(mask)
    if lanes.size == 0:
        return
    operation = next((mod for mod in x.mods if mod in _UPDATES), "")
    if not operation:
        m.fail("unsupported", str(x))
    args = x.args if x.op == "red" else x.args[1:]
    width, sources = WIDTH[kind], elements(args[1])
    size = width * _vector(x)
    if _is_shared(x):
        at, memory = shared_addresses(m, m.address(args[0]), size, lanes), m.shared
    else:
        at, memory = m.address(args[0])[lanes], m.device.memory
        touch_global(m, at, size, lanes, "updates")
        m.counts["atomics"] += lanes.size * len(sources)
        if not m.device.written[at].all():
            m.fail("uninit", "update of memory that nobody wrote")
    compared = m.each(args[2], kind)[lanes] if operation == "cas" else None
    for place, source in enumerate(sources):
        numbers = m.each(source, f"b{8 * width}" if kind in PACKED else kind)[lanes]
        places = (at + place * width) // width
        if kind in PACKED:
            old = _add_packed(_view(memory, width), places, numbers, kind)
        else:
            old = _update(_view(memory, width).view(NUMBER[kind]), places, numbers, operation, compared)
        if x.op == "atom":
            out = np.zeros(m.threads, old.dtype)
            out[lanes] = old
            m.set(elements(x.args[0])[place], out, mask)


def _update(memory: Array, places: Array, numbers: Array, operation: str, compared: Array | None) -> Array:
    """Applies the update to each place in turn; what each found there."""
    old = memory[places]
    if operation == "add" and np.unique(places).size == places.size:
        memory[places] = old + numbers
        return old
    combine = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
               "xor": np.bitwise_xor}  # fmt: skip
    with np.errstate(over="ignore"):
        for lane, place in enumerate(places):
            old[lane] = memory[place]
            if operation == "cas" and compared is not None:
                memory[place] = numbers[lane] if old[lane] == compared[lane] else old[lane]
            else:
                memory[place] = numbers[lane] if operation == "exch" else combine[operation](old[lane], numbers[lane])
    return old


def _add_packed(memory: Array, places: Array, numbers: Array, kind: str) -> Array:
    """Adds 16-bit numbers, or pairs of them, to each place in turn; what each found there."""
    old = np.empty(len(places), memory.dtype)
    for lane, place in enumerate(places):
        old[lane] = memory[place]
        pair = [np.atleast_1d(v).view(np.uint16) for v in (old[lane], numbers[lane])]
        total = from_half(pair[0], kind) + from_half(pair[1], kind)
        memory[place] = to_half(total, kind).view(memory.dtype)[0]
    return old
