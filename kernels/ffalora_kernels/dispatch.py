"""Which backend answers an operation, and why.

``triton`` serves CUDA tensors, ``cpp`` serves CPU tensors, ``reference`` serves everything. A backend that was chosen
automatically may fall back to the reference, and to torch's own products: on processors where those are faster
(``cpu_choices``), on GPUs at ranks that no kernel is compiled for. One that was asked for by name raises instead. A
backend is a module with a table ``IMPLEMENTATIONS`` from the name of an operation to a function with that operation's
signature (``ops.SCHEMAS``); importing it raises ImportError with the reason where it cannot work.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

from . import reference

BACKENDS = ("triton", "cpp", "reference")
_MODULES = {
    "triton": ".triton", "cpp": ".cpu", "reference": ".reference", "triton or torch": ".gpu_products",
    "cpp or torch": ".cpu_products",
}  # fmt: skip
_PREFERRED = {"cuda": "triton", "cpu": "cpp"}
_UNASKED = {"triton": "triton or torch", "cpp": "cpp or torch"}
#: Of the whole process: autograd runs the backward passes of a GPU on threads of its own.
_asked_for: str | None = None


class BackendUnavailable(RuntimeError):
    """A backend that was asked for by name cannot run here."""


@cache
def load(backend: str) -> tuple[ModuleType | None, str]:
    """The module of a backend, or None and the reason why it cannot be used on this machine."""
    try:
        return importlib.import_module(_MODULES[backend], __package__), "available"
    except ImportError as reason:
        return None, str(reason)


def choose(op: str, device_type: str) -> tuple[Callable, str]:
    """The implementation of ``op`` for tensors on ``device_type``, and the name of the backend it comes from."""
    asked = _asked_for
    if asked == "cpp" and device_type != "cpu":  # its kernels take addresses as they come
        raise BackendUnavailable(
            f"backend='cpp' was asked for, which serves CPU tensors; {op} was given {device_type} tensors: move them, "
            "use 'triton' or 'reference', or leave the choice open"
        )
    backend = asked or _PREFERRED.get(device_type, "reference")
    module, reason = load(backend if asked else _UNASKED.get(backend, backend))
    if module is not None and op in module.IMPLEMENTATIONS:
        return module.IMPLEMENTATIONS[op], backend
    if asked:
        missing = reason if module is None else f"it has no {op}"
        raise BackendUnavailable(
            f"backend={asked!r} was asked for, but {missing}; use 'reference' or leave the choice open"
        )
    return reference.IMPLEMENTATIONS[op], "reference"


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block every operation, on whichever thread, runs on backend ``name`` ('triton', 'cpp', 'reference')
    or raises.

    Raises:
        ValueError: unknown name.
        BackendUnavailable: the backend cannot run on this machine (raised here, before any work is lost).
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {name!r}")
    module, reason = load(name)
    if module is None:
        raise BackendUnavailable(f"backend={name!r} cannot run here: {reason}")
    global _asked_for
    before, _asked_for = _asked_for, name
    try:
        yield
    finally:
        _asked_for = before


def explain() -> dict[str, str]:
    """For each backend, 'available' or the reason why it is not (shown by ``ffalora info``)."""
    return {name: load(name)[1] for name in BACKENDS}


def processor_choices() -> dict[str, str]:
    """What answers each operation on this processor (``cpu_choices.describe``); empty without the C++ extension."""
    return importlib.import_module("ffalora_kernels.cpu_choices").describe() if load("cpp")[0] else {}
