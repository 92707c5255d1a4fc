"""PTX's types as numpy's, and the conversions that numpy lacks."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

#: Bytes of a type; a predicate takes one.
WIDTH = {
    "pred": 1, "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2, "b32": 4, "u32": 4,
    "s32": 4, "f32": 4, "f16x2": 4, "bf16x2": 4, "tf32": 4, "b64": 8, "u64": 8, "s64": 8, "f64": 8, "f32x2": 8,
}  # fmt: skip
#: Types that numpy computes with; bfloat16, tf32 and pairs are held as bits.
NUMBER: dict[str, Any] = {
    "u8": np.uint8, "s8": np.int8, "b8": np.uint8, "u16": np.uint16, "s16": np.int16, "b16": np.uint16,
    "u32": np.uint32, "s32": np.int32, "b32": np.uint32, "u64": np.uint64, "s64": np.int64, "b64": np.uint64,
    "f32": np.float32, "f64": np.float64, "f16": np.float16,
}  # fmt: skip
BITS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
#: Types whose halves are computed one by one, in float32.
PACKED = ("f16", "f16x2", "bf16", "bf16x2", "f32x2")
WIDER = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}
#: The bits of a float32 that a tensor core reads as tf32.
TF32_BITS = np.uint32(0xFFFFE000)


def from_bfloat16(bits: Array) -> Array:
    """float32 of bfloat16 bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bfloat16(numbers: Array) -> Array:
    """bfloat16 bits of float32 numbers, rounded to nearest, ties to even."""
    bits = numbers.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(numbers), np.uint16(0x7FFF), rounded.astype(np.uint16))


def from_half(bits: Array, kind: str) -> Array:
    """float32 of the bits of 'bf16' or 'f16' numbers (or of a pair type's half)."""
    return from_bfloat16(bits) if kind.startswith("bf16") else bits.view(np.float16).astype(np.float32)


def to_half(numbers: Array, kind: str) -> Array:
    """Bits of 'bf16' or 'f16' numbers."""
    return to_bfloat16(numbers) if kind.startswith("bf16") else numbers.astype(np.float16).view(np.uint16)


def halves(words: Array, kind: str) -> Array:
    """``[…, 2]`` float32 numbers of 32-bit words that hold a pair, the low half first."""
    low, high = (words & np.uint32(0xFFFF)).astype(np.uint16), (words >> np.uint32(16)).astype(np.uint16)
    return from_half(np.stack([low, high], -1), kind)


def tf32(words: Array) -> Array:
    """The numbers that a tensor core reads from float32 words as tf32."""
    return (np.ascontiguousarray(words) & TF32_BITS).view(np.float32)
