"""RoLoRA (Chen et al., 2024): rounds alternate between training ``b`` and training ``a``; the other stays frozen."""

from __future__ import annotations

from collections.abc import Sequence

from .base import BYTES_PER_NUMBER, ServerState, Strategy


class RoLoRA(Strategy):
    """Averaging is exact in every round, since all clients share the frozen factor; half of LoRA's traffic on square
    layers. ``b`` goes first: while it is zero, ``a`` has no gradient.
    """

    name = "rolora"
    trained = "b"
    trained_words = "b, a in turn"
    kept = "both"
    exact = True
    steady = False
    summary = "RoLoRA: rounds alternate between b and a; exact"
    up = "b or a"
    down = "the other factor (both to a client that sat out)"

    def trained_in(self, round_number: int) -> str:
        return "ba"[round_number % 2]

    def bytes_down(self, server: ServerState, cohort: Sequence[int]) -> int:
        own = self.adapters.layout.size
        layers = self.adapters.layers.values()
        other = sum((layer.lora_B if server.round % 2 else layer.lora_A).numel() for layer in layers)
        heads = sum(place.size for place in self.adapters.layout.places if not place.tensor.startswith("lora_"))
        if server.round == 0:
            numbers = own
        elif self.config.federation.participation == 1:
            numbers = other + heads
        else:
            numbers = own + other
        return BYTES_PER_NUMBER * numbers * len(cohort)
