"""What the variants share: a base layer, frozen factors made from the seed, one trained tensor that starts at zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ffalora_kernels import Segments

from ..autograd import Sink
from ..base_layers import size_of
from ..init import generator_for
from ..trained_layer import Mergeable
from ..training_pass import PassSlot, one_segment


class Variant(Mergeable, nn.Module):
    """A frozen linear layer plus an adapter that is linear in its one trained tensor ``theta``.

    Frozen factors are buffers that no checkpoint holds: seed, layer name and shape give them again.

    Attributes:
        base_layer: the layer that was replaced.
        theta: float32, zero at first; its shape is the variant's.
        scale: ``alpha/R`` or ``alpha/√R``.
    """

    theta: nn.Parameter
    #: Whether the frozen factors depend on the layer's name, not on the seed and their shape alone.
    factors_by_name = True

    def __init__(self, base_layer: nn.Module, name: str, passes: PassSlot, seed: int, rank: int, scale: float):
        nn.Module.__init__(self)
        self.take_place(name, passes)
        self.base_layer, self.rank, self.scale, self.seed = base_layer, rank, scale, seed
        self.is_merged, self.is_enabled = False, True
        n, k = size_of(base_layer)
        self.theta = nn.Parameter(torch.zeros(self.make_factors(n, k), device=base_layer.weight.device))
        self.train(base_layer.training)

    def make_factors(self, n: int, k: int) -> tuple[int, ...]:
        """Makes the frozen factors for a layer ``[N,K]`` and returns the shape of ``theta``."""
        raise NotImplementedError

    def adapter(self, x: Tensor, y: Tensor) -> Tensor:
        """What is added to the base layer's output ``y`` for its input ``x``."""
        raise NotImplementedError

    @property
    def gain(self) -> float:
        """Root mean square length of what a number of ``theta`` adds to the weight (``[N,K]`` as a vector), at scale 1.

        A bottleneck changes no weight: of the features of the output that it weighs.
        """
        raise NotImplementedError

    def frozen(self, tensor: str, *shape: int, std: float = 1.0) -> None:
        """A frozen random factor as a buffer."""
        generator = generator_for(self.seed, f"{self.name if self.factors_by_name else 'shared'}.{tensor}.{shape}")
        value = torch.randn(*shape, generator=generator) * std
        self.register_buffer(tensor, value.to(self.base_layer.weight.device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_merged and self._passes.current is not None:
            raise RuntimeError(
                f"{self.name} is merged into its base weight and cannot be trained; call unmerge() first"
            )
        y = self.base_layer(x)
        return y if self.is_merged or not self.is_enabled else y + self.adapter(x, y).to(y.dtype)

    def trained_theta(self, like: Tensor, repeats: int = 1) -> tuple[Tensor, Segments, Sink | None]:
        """``theta`` of every client, the segments of ``like [..., K]`` with every token repeated, and the sink."""
        current = self._passes.current
        if current is None:
            whole = one_segment(like.numel() // like.shape[-1] * repeats, like.device)
            return self.theta.unsqueeze(0), whole, None
        segments = current.segments_of(like, self.name, self.folded)
        if repeats > 1:
            segments = Segments(
                segments.offsets * repeats,
                segments.client,
                segments.n_clients,
                segments.longest * repeats,
                segments.n_tokens * repeats,
            )
        return self.from_state(current, "theta", self.theta), segments, self.sink(current, "none", "theta")

    def trained(self) -> dict[str, nn.Parameter]:
        return {"theta": self.theta}

    def factors(self) -> dict[str, nn.Parameter]:
        return {"theta": self.theta}

    def checkpoint(self) -> dict[str, Tensor]:
        """What a checkpoint holds of this layer."""
        return {"theta": self.theta}

    def train_factors(self, trained: str) -> None:
        """Raises ValueError for anything but 'b': training a frozen factor too would make averages inexact."""
        if trained != "b":
            raise ValueError(
                f"{self.name} is a {type(self).__name__}, which trains its zero factor ('b') alone, not {trained!r}"
            )

    def merged_weight(self, row: Tensor) -> Tensor | None:
        """None: passes do not use merged weights."""
        return None

    def take_back_initial_product(self) -> None:
        """Nothing was taken from the base weight."""


def rms_length(rows: Tensor) -> float:
    """Root mean square length of the rows of a matrix; 1 where all are zero."""
    found = float(rows.detach().double().square().sum(1).mean().sqrt())
    return found if found > 0 else 1.0
