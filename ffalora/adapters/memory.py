"""How many bytes a model's parts take: the base in its own format, the adapters, and the arena of a private step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from .attach import Adapters


@dataclass(frozen=True)
class MemoryReport:
    """Bytes.

    Attributes:
        base: parameters that are nobody's adapter, as they are stored (quantised ones with their scales).
        frozen_factors, trained: the adapters' (and a trained head's) tensors.
        arena_row: the arena takes this much a sample.
    """

    base: int
    frozen_factors: int
    trained: int
    arena_row: int

    def __str__(self) -> str:
        mib = {name: value / 2**20 for name, value in vars(self).items()}
        return (
            f"base {mib['base']:.1f} MiB, frozen factors {mib['frozen_factors']:.2f} MiB, trained "
            f"{mib['trained']:.2f} MiB, "
            f"arena {mib['arena_row']:.2f} MiB a sample"
        )


def memory_of(adapters: Adapters) -> MemoryReport:
    """What ``adapters`` and their model take."""
    trained = {id(p) for layer in adapters.trained_layers() for p in layer.trained().values()}
    factors = {id(p) for layer in adapters.layers.values() for p in layer.factors().values()} - trained
    sizes = {"base": 0, "factors": 0, "trained": 0}
    for parameter in adapters.model.parameters():
        part = "trained" if id(parameter) in trained else "factors" if id(parameter) in factors else "base"
        sizes[part] += stored_bytes(parameter)
    return MemoryReport(sizes["base"], sizes["factors"], sizes["trained"], 4 * adapters.layout.width)


def stored_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor as it is stored, with what a quantised one needs to be read (scales, code books)."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(stored_bytes(getattr(tensor, name)) for name in names)
    size = tensor.numel() * tensor.element_size()
    state = getattr(tensor, "quant_state", None)  # bitsandbytes, 4 bits
    inner = [state, getattr(state, "state2", None)] if state is not None else []
    extras = [getattr(part, name, None) for part in inner for name in ("absmax", "code", "offset")]
    extras += [getattr(tensor, "SCB", None)]  # bitsandbytes, 8 bits
    return size + sum(t.numel() * t.element_size() for t in extras if isinstance(t, Tensor))
