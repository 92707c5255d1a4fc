"""One client's noise, step by step, where a step's depends on those before it."""

from __future__ import annotations

import torch
from torch import Tensor

from .correlation import Correlation


class CorrelatedNoise:
    """Turns independent normals into ``C⁻¹z``, one step after another, from a few buffers.

    banded-mf: ``y_t = z_t - Σ_j c_j y_(t-j)``, the last b-1 steps' noise in a ring. blt: ``y_t = z_t - Σ_i w_i s_i``,
    then ``s_i = λ_i s_i + y_t``. In secure runs the buffers are as secret as the noise: they are written nowhere.

    Args:
        correlation: the factor C.
        buffers: float64 ``[B,P]``, changed in place. (In float32 their rounding, which depends on what the sums are,
            could add up over P numbers.)
        step: the client's step that the next noise is for, counted over its whole life.

    Raises:
        ValueError: buffers of another shape or dtype.
    """

    def __init__(self, correlation: Correlation, buffers: Tensor, step: int = 0):
        count = len(correlation.weights)
        if buffers.dim() != 2 or len(buffers) != count or buffers.dtype != torch.float64:
            raise ValueError(f"buffers must be float64 [{count},P], got {buffers.dtype} {tuple(buffers.shape)}")
        self.correlation, self.buffers, self.step = correlation, buffers, step
        weights = torch.tensor(correlation.weights, dtype=torch.float64)
        rows = [weights]
        if correlation.mechanism == "banded-mf":  # slot i holds the noise of the last step t with t mod (b-1) = i
            rows = [weights.flip(0).roll(turn) for turn in range(count)]
        self._weights = torch.stack(rows).to(buffers.device) if count else None
        self._decays = torch.tensor(correlation.decays, dtype=torch.float64)[:, None].to(buffers.device)

    @classmethod
    def begin(
        cls, correlation: Correlation, width: int, device: torch.device | str = "cpu", step: int = 0
    ) -> CorrelatedNoise:
        """Noise whose first step depends on none before, for rows of ``width`` columns."""
        return cls(correlation, torch.zeros(len(correlation.weights), width, dtype=torch.float64, device=device), step)

    def to(self, device: torch.device | str) -> CorrelatedNoise:
        """A copy on ``device``."""
        return CorrelatedNoise(self.correlation, self.buffers.to(device, copy=True), self.step)

    def shape_(self, normals: Tensor) -> None:
        """Makes the next step's noise of independent normals, float64 ``[P]``, in place, and remembers it."""
        if self._weights is not None:
            turn = self.step % len(self._weights)
            normals -= self._weights[turn] @ self.buffers
            if self.correlation.mechanism == "banded-mf":
                self.buffers[turn] = normals
            else:
                self.buffers.mul_(self._decays).add_(normals)
        self.step += 1
