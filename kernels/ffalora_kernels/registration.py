"""Operations known to torch by name, so that compilers and dispatch modes see them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import dispatch

NAMESPACE = "ffalora"
_library = torch.library.Library(NAMESPACE, "DEF")


def define(op: str, schema: str, fake: Callable) -> Callable:
    """Registers ``op``, served by whichever backend is chosen at the call.

    Args:
        op: name; schema: arguments and results in torch's notation.
        fake: makes results of the right shape and dtype, for tensors without numbers.

    Returns:
        The operation, looked up once: by name, a call would resolve its overload again.
    """
    _library.define(op + schema, tags=(torch.Tag.needs_fixed_stride_order,))
    for device in ("cpu", "cuda"):
        _library.impl(op, _implementation(op, device), device.upper())
    torch.library.register_fake(f"{NAMESPACE}::{op}", fake, lib=_library)
    return getattr(getattr(torch.ops, NAMESPACE), op).default


def _implementation(op: str, device_type: str) -> Callable:
    def run(*args, **fields):
        return dispatch.choose(op, device_type)[0](*args, **fields)

    return run
