"""A bottleneck with a frozen down-projection: ``y + scale · theta relu(down y)`` (Houlsby et al., ICML 2019)."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from .base import Variant, rms_length
from .expanded import expanded


class Bottleneck(Variant):
    """Random features of the layer's output, and a trained way back: ``down [R,N]`` frozen, ``theta [N,R]`` zero at
    first.

    Linear in ``theta`` although not in ``y``, so that averages of adapters are averages of their outputs; but it is no
    change of a weight and cannot be merged, and PEFT has no format for it.
    """

    def make_factors(self, n: int, k: int) -> tuple[int, ...]:
        self.frozen("down", self.rank, n, std=n**-0.5)
        return (n, self.rank)

    @cached_property
    def gain(self) -> float:
        return rms_length(self.down)

    def adapter(self, x: Tensor, y: Tensor) -> Tensor:
        theta, segments, sink = self.trained_theta(y)
        h = torch.relu(y.reshape(-1, y.shape[-1]) @ self.down.to(y.dtype).T)
        return expanded(h, theta, self.scale, segments, sink).view(y.shape)

    def delta(self) -> Tensor:
        raise ValueError(f"{self.name}: a bottleneck adapter is not a change of the base weight and cannot be merged")
