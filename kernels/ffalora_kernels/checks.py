"""What an operation refuses: shapes, dtypes, devices. Plain comparisons; a message is made where one is refused."""

from __future__ import annotations

import math
from typing import NoReturn

import torch
from torch import Tensor

from .segments import Segments

ACTIVATION_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def signed(key: int) -> int:
    """The 64 bits of a key as a schema's ``int`` holds them."""
    if not -(2**63) <= key < 2**64:
        raise ValueError(f"key must fit into 64 bits, got {key}")
    return key - 2**64 if key >= 2**63 else key


def check_layer(op: str, name: str, t: Tensor, h: Tensor, b: Tensor, segments: Segments) -> int:
    """What ``expand_`` and ``backward`` share; t is ``y`` or ``dy``. Returns N·R."""
    if torch.is_grad_enabled() and (t.requires_grad or h.requires_grad or b.requires_grad):
        refuse_grad(op)
    tokens, n = activation(op, name, t)
    h_tokens, r = activation(op, "h", h)
    check_alike(op, name, t, "h", h)
    clients, offsets, device = segments.n_clients, segments.offsets, t.device
    if b.shape != (clients, n, r):
        raise ValueError(f"b must be [C,N,R] = {(clients, n, r)}, got {tuple(b.shape)}")
    if b.dtype is not t.dtype and b.dtype is not torch.float32:
        raise TypeError(f"b must be float32 or {t.dtype} like the activations, got {b.dtype}")
    if not (clients and b.is_contiguous()) and not b[0].is_contiguous():
        raise ValueError(f"each b[c] must be contiguous, got strides {b.stride()}; call .contiguous()")
    if b.device != device or offsets.device != device:
        refuse_devices("b", b=b, activations=t, offsets=offsets)
    if not tokens == h_tokens == segments.n_tokens:
        refuse_tokens(op, segments, **{name: t, "h": h})
    return n * r


def refuse_grad(op: str) -> NoReturn:
    raise RuntimeError(f"{op} is not differentiable: call it inside an autograd.Function or under torch.no_grad()")


def activation(op: str, name: str, t: Tensor) -> torch.Size:
    """The shape of ``t``, checked."""
    shape = t.shape
    if len(shape) != 2:
        raise ValueError(f"{op}: {name} must be two-dimensional, got shape {tuple(shape)}")
    if t.dtype not in ACTIVATION_DTYPES:
        raise TypeError(f"{op}: {name} must be float32, bfloat16 or float16, got {t.dtype}")
    if t.stride()[1] != 1 and shape[1] > 1 and shape[0] > 0:
        raise ValueError(
            f"{op}: elements of a row of {name} must be adjacent, got strides {t.stride()}; call .contiguous()"
        )
    return shape


def check_alike(op: str, first: str, reference: Tensor, name: str, t: Tensor) -> None:
    if t.dtype is not reference.dtype:
        raise TypeError(f"{op}: {name} is {t.dtype} but {first} is {reference.dtype}; cast one of them")
    if t.device != reference.device:
        refuse_devices(op, **{first: reference, name: t})


def refuse_tokens(op: str, segments: Segments, **tensors: Tensor | None) -> NoReturn:
    rows = {name: t.shape[0] for name, t in tensors.items() if t is not None}
    name = next(name for name in rows if rows[name] != segments.n_tokens)
    raise ValueError(f"{op}: {name} has {rows[name]} rows but the segments cover {segments.n_tokens} tokens")


def check_arena(
    arena: Tensor, column: int, width: int, squares: Tensor | None, slot: int, segments: Segments, like: Tensor
) -> None:
    rows, columns = matrix("arena", arena)
    expected = torch.float64 if like.dtype is torch.float64 else torch.float32
    if arena.dtype is not expected:
        raise TypeError(f"arena must be {expected}, got {arena.dtype}")
    if rows != len(segments):
        raise ValueError(f"arena has {rows} rows for {len(segments)} segments; pass arena[:S]")
    if column < 0 or column + width > columns:
        raise ValueError(f"arena has {columns} columns; column={column} and width {width} do not fit")
    check_flat("arena", arena)
    device = like.device
    if squares is not None:
        s, slots = matrix("squares", squares)
        if s != rows or squares.dtype is not torch.float64 or not 0 <= slot < slots:
            raise ValueError(
                f"squares must be float64 [{rows}, slots > slot={slot}], got {squares.dtype} {tuple(squares.shape)}"
            )
        check_own_rows("squares", squares)
    if arena.device != device or (squares is not None and squares.device != device):
        refuse_devices("arena", arena=arena, squares=squares, activations=like)


def check_flat(name: str, t: Tensor) -> None:
    if t.is_contiguous():
        return
    shape, strides = t.shape, t.stride()
    if t.numel() and shape[1] > 1 and (strides[1] != 1 or (shape[0] > 1 and strides[0] < shape[1])):
        raise ValueError(f"{name} must be row-major, got shape {tuple(shape)} with strides {strides}")


def check_own_rows(name: str, t: Tensor) -> None:
    """Refuses to write into a tensor whose rows are one and the same (``expand``)."""
    if t.stride()[0] == 0 and t.shape[0] > 1 and t.numel():
        raise ValueError(f"{name} is written into, but its rows share their memory; call .clone()")


def matrix(name: str, t: Tensor) -> torch.Size:
    shape = t.shape
    if len(shape) != 2:
        raise ValueError(f"{name} must be two-dimensional, got shape {tuple(shape)}")
    return shape


def expect(name: str, t: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if t.shape != shape or t.dtype is not dtype:
        raise ValueError(f"{name} must be {dtype} of shape {shape}, got {t.dtype} {tuple(t.shape)}")


def check_limits(max_grad_norm: Tensor, mode: str) -> None:
    """What ``clip_reduce_`` clips to, where reading it waits for no device: asked by backends that read it anyway."""
    most = torch.finfo(torch.float64).max if mode == "automatic" else math.inf
    if not ((max_grad_norm >= 0) & (max_grad_norm <= most)).all():
        allowed = "finite with mode='automatic'" if mode == "automatic" else "infinite where nothing is to be clipped"
        raise ValueError(f"max_grad_norm must not be negative or NaN, and {allowed}, got {max_grad_norm.tolist()}")


def on_one_device(first: Tensor, *others: Tensor | None) -> bool:
    device = first.device
    for t in others:
        if t is not None and t.device != device:
            return False
    return True


def refuse_devices(op: str, **tensors: Tensor | None) -> NoReturn:
    devices = {name: t.device for name, t in tensors.items() if t is not None}
    raise ValueError(f"{op}: all tensors must be on one device, got {devices}")
