"""What the threads of a warp or a program do together: barriers, shuffles, votes."""

from __future__ import annotations

import numpy as np

from .formats import Array
from .machine import Machine, instruction
from .parser import Instruction
from .registers import Mask

_LANES = np.arange(32)


@instruction("bar", "barrier")
def barrier(m: Machine, x: Instruction, mask: Mask) -> None:
    """``bar.sync`` starts a new epoch of shared memory; of a part of a program's threads it is refused."""
    if "warp" in x.mods:
        return
    slots = np.unique(m.slot[m.active(mask)])
    if mask is not None and len(x.args) < 2:
        there = np.bincount(m.slot[mask], minlength=m.n_programs)[slots]
        if (there != m.block).any():
            m.fail("divergent-barrier", f"reached by {int(there.min())} of {m.block} threads")
    m.shared_watch.epoch[slots] += 1
    m.counts["barriers"] += slots.size


@instruction("shfl")
def shuffle(m: Machine, x: Instruction, mask: Mask) -> None:
    """``shfl``: a register of another lane, and whether that lane is within the segment."""
    mode = next(mod for mod in x.mods if mod in ("bfly", "idx", "up", "down"))
    names, values = x.args[0].split("|"), m.by_warp(m.bits(x.args[1], "b32"))
    step, clamp = (m.by_warp(m.value(arg, "b32")).astype(np.int64) for arg in x.args[2:4])
    segment = clamp >> 8 & 31
    lowest = _LANES & segment
    highest = lowest | (clamp & 31 & ~segment)
    if mode == "up":
        other = _LANES - step
        inside = other >= lowest
    else:
        other = {"bfly": _LANES ^ step, "idx": lowest | (step & ~segment), "down": _LANES + step}[mode]
        inside = other <= highest
    other = np.where(inside, other, _LANES)
    m.set(names[0], np.take_along_axis(values, other, 1).reshape(-1), mask)
    if len(names) > 1:
        m.set(names[1], inside.reshape(-1), mask)
    m.counts["shuffles"] += values.shape[0]


def _present(m: Machine, mask: Mask) -> Array:
    return m.by_warp(np.ones(m.threads, bool) if mask is None else mask)


def _ballot(lanes: Array) -> Array:
    return np.repeat((lanes.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(1).astype(np.uint32), 32)


@instruction("vote")
def vote(m: Machine, x: Instruction, mask: Mask) -> None:
    """``vote``: a predicate of all lanes that are there."""
    said, there = m.by_warp(m.value(x.args[1], "pred")), _present(m, mask)
    mode = next(mod for mod in x.mods if mod in ("ballot", "any", "all"))
    if mode == "ballot":
        found = _ballot(said & there)
    else:
        found = np.repeat((said & there).any(1) if mode == "any" else (said | ~there).all(1), 32)
    m.set(x.args[0], found, mask)


@instruction("redux")
def reduce(m: Machine, x: Instruction, mask: Mask) -> None:
    """``redux.sync``: the sum, least or largest integer of the lanes that are there, in each of them."""
    kind = x.mods[-1]
    values, there = m.by_warp(m.value(x.args[1], kind)), _present(m, mask)
    combine, nothing = {
        "add": (np.sum, 0),
        "min": (np.min, np.iinfo(values.dtype).max),
        "max": (np.max, np.iinfo(values.dtype).min),
    }[x.mods[1]]
    found = combine(np.where(there, values, values.dtype.type(nothing)), axis=1).astype(values.dtype)
    m.set(x.args[0], np.repeat(found, 32), mask)


@instruction("activemask")
def active_mask(m: Machine, x: Instruction, mask: Mask) -> None:
    """``activemask``: one bit for each lane that is there."""
    m.set(x.args[0], _ballot(_present(m, mask)), mask)


@instruction("elect")
def elect(m: Machine, x: Instruction, mask: Mask) -> None:
    """``elect.sync``: the first lane of each warp."""
    lane, chosen = x.args[0].split("|")
    m.set(chosen, m.thread % 32 == 0, mask)
    m.set(lane, np.zeros(m.threads, np.uint32), mask)
