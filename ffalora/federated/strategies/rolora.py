"""RoLoRA (Chen et al., 2024): rounds alternate between training ``b`` and training ``a``; the other stays frozen."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Facts, ServerState
from .both import BothWire, KeepsBoth
from .wire import BYTES_PER_NUMBER


class RoLoRAWire(BothWire):
    """The factor in turn goes up; down goes the other one, and both to a client that may have sat out."""

    def factor(self, round_number: int) -> str:
        return "ba"[round_number % 2]

    def bytes_down(self, server: ServerState, cohort: Sequence[int]) -> int:
        own, heads = self.trained_layout(server).size, self.head_numbers()
        other = self.layouts[self.factor(server.round + 1)].size - heads
        if server.round == 0:
            numbers = own
        elif server.round == 1 or self.everyone_is_there:  # nobody has trained a before the second round
            numbers = other + heads
        else:
            numbers = own + other
        return BYTES_PER_NUMBER * numbers * len(cohort)


class RoLoRA(KeepsBoth):
    """Averaging is exact in every round, since all clients share the frozen factor; half of LoRA's traffic on square
    layers. ``b`` goes first: while it is zero, ``a`` has no gradient.
    """

    name = "rolora"
    exact = True
    wire_class = RoLoRAWire
    facts = Facts(up="b or a", down="the other factor (both to a client that sat out)", trained="b, a in turn")
