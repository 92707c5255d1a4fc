"""Operations known to torch by name, so that compilers and dispatch modes see them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd.graph import increment_version

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
    operation = getattr(getattr(torch.ops, NAMESPACE), op).default
    changes = [(i, one) for i, one in enumerate(operation._schema.arguments) if one.alias_info]
    places, names = [i for i, one in changes if not one.kwarg_only], [one.name for _, one in changes if one.kwarg_only]
    for device in ("cpu", "cuda"):
        _library.impl(op, _implementation(op, device, places, names), device.upper())
    torch.library.register_fake(f"{NAMESPACE}::{op}", fake, lib=_library)
    return operation


def _implementation(op: str, device_type: str, places: list[int], names: list[str]) -> Callable:
    """Serves ``op``, and tells autograd that the arguments at ``places`` and ``names`` change: a graph that saved one
    of them then raises instead of giving the gradient of other numbers.
    """

    def run(*args, **fields):
        if torch.is_autocast_enabled(device_type):  # which would choose the formats of products in here
            with torch.autocast(device_type, enabled=False):
                return run(*args, **fields)
        result = dispatch.choose(op, device_type)[0](*args, **fields)
        increment_version([t for t in (*(args[i] for i in places), *(fields[n] for n in names)) if t is not None])
        return result

    return run
