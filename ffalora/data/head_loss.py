"""Losses of a language model from the states that its frozen head is given: the logits ``[S,T,V]`` never exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ffalora_kernels import Segments, linear_cross_entropy
from ffalora_kernels.backward_pass import backward_pass

from .examples import IGNORE_INDEX


@dataclass(frozen=True)
class HeadStates:
    """What stands in an output for the logits that a frozen linear head would make.

    Attributes:
        states: ``[S,T,D]``, what the head is given.
        weight: ``[V,D]``; bias: ``[V]`` or None. Neither receives a gradient.
        softcap: c of ``c·tanh(z/c)`` in place of the logits z; 0 leaves them.
    """

    states: Tensor
    weight: Tensor
    bias: Tensor | None = None
    softcap: float = 0.0

    def token_losses(self, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each sample's target tokens: the sum of their losses float32 ``[S]``, how many there are, and of how many
        the likeliest next token was the right one (int64 and int32 ``[S]``).

        ``targets`` int64 ``[S,T]`` are the input tokens, IGNORE_INDEX where none is counted: position t is predicted at
        t - 1.
        """
        following = torch.full_like(targets, IGNORE_INDEX)
        following[:, :-1] = targets[:, 1:]
        sums, right = _HeadLosses.apply(self.states, self.weight, self.bias, following, self.softcap)
        return sums, (following != IGNORE_INDEX).sum(dim=1), right


class _HeadLosses(torch.autograd.Function):
    """Sums of losses ``[S]``; the gradient of the states is computed with them and waits for its factors."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float
    ) -> tuple[Tensor, Tensor]:
        samples, tokens, width = states.shape
        starts = torch.arange(samples + 1, dtype=torch.int32, device=states.device) * tokens
        segments = Segments(starts, torch.zeros_like(starts[1:]), 1, tokens, samples * tokens)
        sums, right, gradient = linear_cross_entropy(
            states.reshape(-1, width),
            weight,
            bias,
            targets.reshape(-1),
            segments,
            ignore_index=IGNORE_INDEX,
            reduction="sum",
            softcap=softcap,
            gradient=ctx.needs_input_grad[0],
        )
        ctx.mark_non_differentiable(right)
        ctx.save_for_backward(gradient.view(-1, tokens, width))
        return sums, right

    @staticmethod
    @backward_pass
    def backward(ctx: Any, factors: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        scaled = torch.mul(gradient, factors[:, None, None], out=torch.empty_like(gradient))
        return scaled, None, None, None, None
