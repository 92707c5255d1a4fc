"""LA-LoRA (Liu et al., ICLR 2026): local steps take turns between ``b`` and ``a``; the server averages both."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ...adapters import Adapters
from ...config import Config
from .base import Facts
from .both import columns_of, layout_of
from .lora import LoRAFedAvg


class LALoRA(LoRAFedAvg):
    """Each local step clips and noises the factor that it trains alone, so that all of C and half of LoRA's noise are
    that factor's; within a step the update is linear in the noise, as FFA-LoRA's is. ``b`` goes first: while it is
    zero, ``a`` has no gradient. Turns count through all rounds. Averaging is inexact as LoRA's is, but where a round
    is one local step.

    Its authors also pass the noisy gradients through a fixed Gaussian filter, which is not here; momentum, of each
    factor by itself, is the smoothing that the optimiser has.

    Attributes:
        turns: what the first local step trains, the second, and so on.
    """

    name = "lalora"
    steady = False
    turns: ClassVar[str] = "ba"
    facts = Facts(up="a, b", down="a, b", aggregation="average of each factor", trained="b, a in turn, by local steps")

    def __init__(self, adapters: Adapters, config: Config, clients: int):
        super().__init__(adapters, config, clients)
        self._columns = {factor: columns_of(layout_of(adapters, factor), self.layout) for factor in self.turns}
        adapters.train_factors(self.trained)

    def columns(self, factor: str) -> Tensor:
        """int64: where the columns of a factor's turn, a trained head's among them, lie in the row."""
        return self._columns[factor]
