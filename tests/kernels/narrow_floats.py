"""Makes bfloat16 right in Triton's interpreter, which computes with its bits as if they were integers.

Replaces private functions of the interpreter, so it belongs to tests. ``install()`` after triton was imported under
``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_Handle, _Builder = interpreter.TensorHandle, interpreter.InterpreterBuilder
_BINARY = ("fadd", "fsub", "fmul", "fdiv", "frem", "minimumf", "maximumf", "minnumf", "maxnumf")


def widened(bits: np.ndarray) -> np.ndarray:
    """float32 of bfloat16 bits."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32).reshape(np.shape(bits))


def narrowed(numbers: np.ndarray) -> np.ndarray:
    """bfloat16 bits of float32 numbers, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(numbers), np.uint16(0x7FFF), rounded.reshape(np.shape(numbers)))


def _is_narrow(handle: Any) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _numbers(handle: Any) -> np.ndarray:
    return widened(handle.data) if _is_narrow(handle) else handle.data


def _product(shipped: Callable) -> Callable:
    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if _is_narrow(a) or _is_narrow(b):
            return _Handle(np.matmul(_numbers(a), _numbers(b), dtype=np.float32) + d.data, d.dtype.scalar)
        return shipped(self, a, b, d, *rest)

    return create_dot


def _binary(shipped: Callable, compares: bool) -> Callable:
    def create(self: Any, left: Any, right: Any, *rest: Any) -> Any:
        if not _is_narrow(left):
            return shipped(self, left, right, *rest)
        wide = (_Handle(_numbers(side), tl.float32) for side in (left, right))
        found = shipped(self, *wide, *rest)
        return found if compares else _Handle(narrowed(found.data), tl.bfloat16)

    return create


def _cast(shipped: Callable) -> Callable:
    def cast_impl(self: Any, source: Any, to: Any) -> Any:
        kind = to.scalar
        if _is_narrow(source) and kind != tl.bfloat16:
            wide = _Handle(_numbers(source), tl.float32)
            return wide if kind == tl.float32 else shipped(self, wide, to)
        if kind == tl.bfloat16 and not _is_narrow(source):
            return _Handle(narrowed(source.data.astype(np.float32)), tl.bfloat16)
        return shipped(self, source, to)

    return cast_impl


def _index_of_scalars(shipped: Callable) -> Callable:
    """Tensors of one element count as integers: numpy 2.4 no longer converts arrays, as Triton 3.6 asks it to."""

    def index(self: Any) -> int:
        return int(np.asarray(self.handle.data).reshape(-1)[0])

    def patch(tensor: Any, *scope: Any) -> Any:
        found = shipped(tensor, *scope)
        if scope:
            scope[0].set_attr(tensor, "__index__", index)
        else:
            tensor.__index__ = index
        return found

    return patch


def install() -> None:
    """Puts the replacements in place."""
    _Builder.create_dot = _product(_Builder.create_dot)
    _Builder.cast_impl = _cast(_Builder.cast_impl)
    for name in [f"create_{name}" for name in _BINARY if hasattr(_Builder, f"create_{name}")]:
        setattr(_Builder, name, _binary(getattr(_Builder, name), compares=False))
    for name in [name for name in dir(_Builder) if name.startswith("create_fcmp")]:
        setattr(_Builder, name, _binary(getattr(_Builder, name), compares=True))
    if not hasattr(_Builder, "get_bf16"):
        _Builder.get_bf16 = lambda self, value: _Handle(narrowed(np.array([value], np.float32)), tl.bfloat16)
    interpreter._patch_lang_tensor = _index_of_scalars(interpreter._patch_lang_tensor)
