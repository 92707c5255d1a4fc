"""What a way to train looks like to the benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from workload import Workload

Sums = dict[str, Tensor]


@dataclass
class Provider:
    """One way to train.

    Attributes:
        step: takes the number of the logical batch.
        sums: gradients by name, before noise; None where there are none to compare (the floor).
        clips: whether ``sums`` are clipped per sample.
        trained: 'b' or 'both'.
        tokens: tokens computed in the last call, padding included; 0 where a batch is padded to its longest.
        dtype: number format of its base where that is not the workload's.
        several: takes so many steps in one call, from a logical batch on, as a run does; None where there is no other
            way than one step after another.
    """

    step: Callable[[int], None]
    sums: Callable[[int], Sums] | None = None
    clips: bool = True
    trained: str = "b"
    tokens: Callable[[], int] = field(default=lambda: 0)
    dtype: torch.dtype | None = None
    several: Callable[[int, int], None] | None = None

    def take(self, number: int, count: int) -> None:
        """``count`` steps, from logical batch ``number`` on."""
        if self.several is not None:
            return self.several(number, count)
        for each in range(number, number + count):
            self.step(each)


Factory = Callable[[Workload], Provider]


def canonical(name: str) -> str:
    """A parameter's name without what PEFT and Opacus put around it."""
    for wrapping in ("_module.", "base_model.model.", ".default.weight"):
        name = name.replace(wrapping, "")
    return name


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's trained tensors by their common names."""
    return {canonical(name): p for name, p in model.named_parameters() if p.requires_grad}


def given(factory: Factory, **changes: Any) -> Factory:
    """The factory on a changed workload, e.g. with another ``dtype`` or ``attention``."""

    def make(work: Workload) -> Provider:
        provider = factory(replace(work, **changes))
        return replace(provider, dtype=changes.get("dtype", work.dtype))

    return make
