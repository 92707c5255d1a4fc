"""How many bytes a model's parts take: the base in its own format, the adapters, and the arena of a private step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn


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
            f"base {mib['base']:.1f} MiB, frozen factors {mib['frozen_factors']:.2f} MiB, "
            f"trained {mib['trained']:.2f} MiB, arena {mib['arena_row']:.2f} MiB a sample"
        )


def memory_of(model: nn.Module, factors: Iterable[Tensor], trained: Iterable[Tensor], width: int) -> MemoryReport:
    """What a model and its adapters take.

    Args:
        factors: of all adapters, trained or not.
        trained: every trained tensor.
        width: columns of the arena.
    """
    kinds = {id(p): "factors" for p in factors} | {id(p): "trained" for p in trained}
    sizes = {"base": 0, "factors": 0, "trained": 0}
    for parameter in model.parameters():
        sizes[kinds.get(id(parameter), "base")] += stored_bytes(parameter)
    return MemoryReport(sizes["base"], sizes["factors"], sizes["trained"], 4 * width)


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
