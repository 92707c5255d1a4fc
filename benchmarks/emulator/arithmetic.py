"""Sums, products, comparisons and conversions of single numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .formats import BITS, NUMBER, PACKED, WIDER, WIDTH, Array, from_bfloat16, from_half, tf32, to_bfloat16, to_half
from .machine import Machine, instruction
from .parser import Instruction, elements
from .registers import Mask

_COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
_ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _two(m: Machine, x: Instruction, mask: Mask, compute: Callable) -> None:
    """A function of two numbers."""
    kind = x.mods[-1]
    if kind in PACKED:
        return _packed(m, x, mask, compute, 2)
    with np.errstate(all="ignore"):
        found = compute(m.value(x.args[1], kind), m.value(x.args[2], kind))
    m.set(x.args[0], np.asarray(found).astype(NUMBER.get(kind, bool), copy=False), mask)
    if kind == "f32":
        m.counts["scalar_flops"] += m.count_active(mask)
    return None


def _packed(m: Machine, x: Instruction, mask: Mask, compute: Callable, count: int) -> None:
    """A function of 16-bit numbers or of the halves of pairs, in float32."""
    kind = x.mods[-1]
    step = 32 if kind == "f32x2" else 16
    held = [m.each_bits(arg, f"b{8 * WIDTH[kind]}") for arg in x.args[1 : 1 + count]]
    out = np.zeros(m.threads, BITS[WIDTH[kind]])
    for at in range(0, 8 * WIDTH[kind], step):
        parts = [(bits >> bits.dtype.type(at)).astype(BITS[step // 8]) for bits in held]
        numbers = [part.view(np.float32) if step == 32 else from_half(part, kind) for part in parts]
        with np.errstate(all="ignore"):
            found = compute(*numbers).astype(np.float32)
        bits = found.view(np.uint32) if step == 32 else to_half(found, kind)
        out |= bits.astype(out.dtype) << out.dtype.type(at)
    m.set(x.args[0], out, mask)


@instruction("add")
def add(m: Machine, x: Instruction, mask: Mask) -> None:
    """``add``."""
    _two(m, x, mask, lambda a, b: a + b)


@instruction("sub")
def subtract(m: Machine, x: Instruction, mask: Mask) -> None:
    """``sub``."""
    _two(m, x, mask, lambda a, b: a - b)


@instruction("mul")
def multiply(m: Machine, x: Instruction, mask: Mask) -> None:
    """``mul``: of floats, and the low, high or whole product of integers."""
    if "wide" in x.mods or "hi" in x.mods:
        m.set(x.args[0], _long_product(m, x), mask)
    else:
        _two(m, x, mask, lambda a, b: a * b)


def _long_product(m: Machine, x: Instruction) -> Array:
    """``.wide``, or ``.hi`` of 32-bit and 64-bit integers."""
    kind = x.mods[-1]
    a, b = m.each(x.args[1], kind), m.each(x.args[2], kind)
    if kind in WIDER:
        wide = NUMBER[WIDER[kind]]
        product = a.astype(wide) * b.astype(wide)
        return product if "wide" in x.mods else (product >> wide(8 * WIDTH[kind])).astype(NUMBER[kind])
    high = [((int(p) * int(q)) >> 64) & (2**64 - 1) for p, q in zip(a, b, strict=True)]
    return np.array(high, np.uint64)


@instruction("mad")
def multiply_add(m: Machine, x: Instruction, mask: Mask) -> None:
    """``mad`` of integers."""
    kind = x.mods[-1]
    with np.errstate(all="ignore"):
        if "wide" in x.mods or "hi" in x.mods:
            found = _long_product(m, x) + m.value(x.args[3], WIDER[kind] if "wide" in x.mods else kind)
        else:
            product = m.value(x.args[1], kind) * m.value(x.args[2], kind)
            found = np.asarray(product + m.value(x.args[3], kind)).astype(NUMBER[kind])
    m.set(x.args[0], found, mask)


@instruction("fma")
def fused_multiply_add(m: Machine, x: Instruction, mask: Mask) -> None:
    """``fma``: float32 in float64, float64 in the widest float that numpy has."""
    kind = x.mods[-1]
    if kind in PACKED:
        return _packed(m, x, mask, lambda a, b, c: a.astype(np.float64) * b + c, 3)
    wide = np.float64 if kind == "f32" else np.longdouble
    a, b, c = (np.asarray(m.value(arg, kind)).astype(wide) for arg in x.args[1:4])
    with np.errstate(all="ignore"):
        m.set(x.args[0], (a * b + c).astype(NUMBER[kind]), mask)
    m.counts["scalar_flops"] += 2 * m.count_active(mask)
    return None


@instruction("div")
def divide(m: Machine, x: Instruction, mask: Mask) -> None:
    """``div``; integers are cut towards zero."""

    def quotient(a: Array, b: Array) -> Array:
        if x.mods[-1][0] == "f":
            return a / b
        wide_a, wide_b = np.asarray(a), np.where(b == 0, 1, b)
        if x.mods[-1][0] == "s":
            wide_a, wide_b = wide_a.astype(np.int64), wide_b.astype(np.int64)
            return np.sign(wide_a) * np.sign(wide_b) * (np.abs(wide_a) // np.abs(wide_b))
        return wide_a // wide_b.astype(wide_a.dtype)

    _two(m, x, mask, quotient)


@instruction("rem")
def remainder(m: Machine, x: Instruction, mask: Mask) -> None:
    """``rem``, with the sign of the first number."""
    _two(m, x, mask, lambda a, b: np.fmod(a, np.where(b == 0, 1, b).astype(np.asarray(b).dtype)))


@instruction("min")
def minimum(m: Machine, x: Instruction, mask: Mask) -> None:
    """``min``; a NaN gives way to a number unless ``.NaN`` is asked for."""
    _two(m, x, mask, np.minimum if "NaN" in x.mods or x.mods[-1][0] in "su" else np.fmin)


@instruction("max")
def maximum(m: Machine, x: Instruction, mask: Mask) -> None:
    """``max``, likewise."""
    _two(m, x, mask, np.maximum if "NaN" in x.mods or x.mods[-1][0] in "su" else np.fmax)


@instruction("neg")
def negate(m: Machine, x: Instruction, mask: Mask) -> None:
    """``neg``."""
    _one(m, x, mask, np.negative)


@instruction("abs")
def absolute(m: Machine, x: Instruction, mask: Mask) -> None:
    """``abs``."""
    _one(m, x, mask, np.abs)


def _one(m: Machine, x: Instruction, mask: Mask, compute: Callable) -> None:
    kind = x.mods[-1]
    if kind in PACKED:
        _packed(m, x, mask, compute, 1)
    else:
        with np.errstate(all="ignore"):
            m.set(x.args[0], compute(m.each(x.args[1], kind)), mask)


_FUNCTIONS = {
    "ex2": np.exp2, "lg2": np.log2, "rcp": np.reciprocal, "sqrt": np.sqrt, "rsqrt": lambda v: 1 / np.sqrt(v),
    "sin": np.sin, "cos": np.cos, "tanh": np.tanh,
}  # fmt: skip


@instruction(*_FUNCTIONS)
def function(m: Machine, x: Instruction, mask: Mask) -> None:
    """Roots, exponentials, logarithms and the like, in float64: approximations of the part are better here."""
    kind = x.mods[-1]
    with np.errstate(all="ignore"):
        found = _FUNCTIONS[x.op](m.each(x.args[1], kind).astype(np.float64))
        m.set(x.args[0], found.astype(NUMBER[kind]), mask)
    m.counts["special_functions"] += m.count_active(mask)


@instruction("setp")
def compare(m: Machine, x: Instruction, mask: Mask) -> None:
    """``setp``: a comparison, its negation, and either combined with a predicate."""
    how, kind = x.mods[0], x.mods[-1]
    if kind in ("bf16", "f16"):
        a, b = (from_half(m.each_bits(arg, kind), kind) for arg in x.args[1:3])
    else:
        number = "u" + kind[1:] if kind[0] == "b" else kind
        a, b = m.value(x.args[1], number), m.value(x.args[2], number)
    unordered = np.isnan(a) | np.isnan(b) if "f" in kind else np.False_
    with np.errstate(all="ignore"):
        if how in ("nan", "num"):
            found = unordered if how == "nan" else ~unordered
        elif how in _COMPARE:
            found = _COMPARE[how](a, b) & ~unordered
        else:
            found = _COMPARE[how[:2]](a, b) | unordered
    results = [np.broadcast_to(found, (m.threads,))]
    results.append(~results[0])
    combine = _COMBINE.get(x.mods[1])
    if combine is not None:
        other = m.each(x.args[3], "pred")
        results = [combine(result, other) for result in results]
    for name, result in zip(x.args[0].split("|"), results, strict=False):
        m.set(name, result.copy(), mask)


@instruction("selp")
def select(m: Machine, x: Instruction, mask: Mask) -> None:
    """``selp``: one of two numbers, immediates among them, by their bits."""
    yes, no = (m.each_bits(arg, x.mods[-1]) for arg in x.args[1:3])
    m.set(x.args[0], np.where(m.each(x.args[3], "pred"), yes, no), mask)


@instruction("mov", "cvta")
def move(m: Machine, x: Instruction, mask: Mask) -> None:
    """``mov``, also between a wide register and several narrow ones; addresses are the same in every space."""
    kind, to = x.mods[-1], elements(x.args[0])
    if len(to) > 1:
        held, step = m.each_bits(x.args[1], f"b{8 * WIDTH[kind]}"), 8 * WIDTH[kind] // len(to)
        for at, name in enumerate(to):
            m.set(name, (held >> held.dtype.type(step * at)).astype(BITS[step // 8]), mask)
    else:
        m.set(to[0], m.each(x.args[1], kind).copy(), mask)


@instruction("cvt")
def convert(m: Machine, x: Instruction, mask: Mask) -> None:
    """``cvt`` between integers and floats, rounded as it says."""
    to, source = [mod for mod in x.mods if mod in WIDTH][:2]
    if to in ("bf16x2", "f16x2"):
        return _convert_pair(m, x, mask, to)
    held = from_bfloat16(m.each_bits(x.args[1], "b16")) if source == "bf16" else m.each(x.args[1], source)
    rounding = next((_ROUND[mod] for mod in x.mods if mod in _ROUND), None)
    with np.errstate(all="ignore"):
        if to == "bf16":
            found = to_bfloat16(held.astype(np.float32))
        elif to == "tf32":
            found = tf32(held.astype(np.float32).view(np.uint32) + np.uint32(0x1000)).view(np.uint32)
        elif to[0] == "f":
            found = held.astype(NUMBER[to]) if rounding is None else rounding(held).astype(NUMBER[to])
            if "sat" in x.mods:
                found = np.clip(np.nan_to_num(found), 0, 1).astype(NUMBER[to])
        elif "f" in source:
            found = _to_integer(held, rounding or np.trunc, to)
        else:
            found = held.astype(NUMBER[to])
    if to[0] in "su" and WIDTH[m.register_type(x.args[0])] > WIDTH[to]:
        found = found.astype(np.int64 if to[0] == "s" else np.uint64)
    m.set(x.args[0], found, mask)
    return None


def _to_integer(numbers: Array, rounding: Callable, kind: str) -> Array:
    limits = np.iinfo(NUMBER[kind])
    whole = np.nan_to_num(rounding(numbers.astype(np.float64)))
    inside = np.clip(whole, float(limits.min), np.nextafter(float(limits.max), 0) if WIDTH[kind] == 8 else limits.max)
    return np.where(whole >= float(limits.max), NUMBER[kind](limits.max), inside.astype(NUMBER[kind]))


def _convert_pair(m: Machine, x: Instruction, mask: Mask, to: str) -> None:
    high, low = (m.each(arg, "f32") for arg in x.args[1:3])
    if "relu" in x.mods:
        high, low = np.maximum(high, 0), np.maximum(low, 0)
    with np.errstate(all="ignore"):
        high_bits, low_bits = to_half(high, to).astype(np.uint32), to_half(low, to).astype(np.uint32)
    m.set(x.args[0], high_bits << np.uint32(16) | low_bits, mask)
