"""What noise on the factors does to the product: a linear part and, where both factors are noised, a quadratic one.

With noise ``ξ_B [N,R]`` and ``ξ_A [R,K]`` on the factors,

    ``s(b+ξ_B)(a+ξ_A) - s·b a = s(ξ_B a + b ξ_A)  +  s·ξ_B ξ_A``
                                   (linear)        (quadratic)

(Sun et al., ICLR 2024); with a frozen ``a`` only ``s·ξ_B a`` remains. For independent entries of variance
v the parts are uncorrelated, and

    ``E‖linear‖² = s²v(N‖a‖² + K‖b‖²)``,  ``E‖quadratic‖² = s²v²·N·R·K``,  FFA-LoRA: ``s²v·N‖a‖²``.

Derivations: ``docs/theory.md``, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ffalora_kernels import privatize_step_

from ...adapters.state import Layout
from ...privacy.noise import SeededNoise


@dataclass(frozen=True)
class NoiseParts:
    """Squared Frobenius norms of the two parts of the noise in ``ΔW``; parts of several layers or draws add up."""

    linear: float
    quadratic: float

    @property
    def total(self) -> float:
        """The expectation of the squared norm of the whole noise: the parts are uncorrelated."""
        return self.linear + self.quadratic

    @property
    def quadratic_share(self) -> float:
        """``quadratic / total``; 0 without noise."""
        return self.quadratic / self.total if self.total else 0.0

    def __add__(self, other: NoiseParts) -> NoiseParts:
        return NoiseParts(self.linear + other.linear, self.quadratic + other.quadratic)

    def __truediv__(self, count: float) -> NoiseParts:
        return NoiseParts(self.linear / count, self.quadratic / count)


def step_variance(noise_std: float, expected_batch: float, lr: float) -> float:
    """Variance ``(lr · σC / batch)²`` that one SGD step's noise leaves in each trained number.

    Args:
        noise_std: σC, standard deviation of the noise on the clipped sum.
        expected_batch: what the sum is divided by.
        lr: learning rate of the step.
    """
    return (lr * noise_std / expected_batch) ** 2


def averaged_variance(variances: Sequence[float], weights: Sequence[float]) -> float:
    """Variance ``Σ_k w_k² v_k`` of the weighted average of independent noise."""
    return sum(w * w * v for w, v in zip(weights, variances, strict=True))


def decompose(b: Tensor, a: Tensor, noise_b: Tensor, noise_a: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """The linear and the quadratic part of the noise in ``ΔW``, both ``[N,K]``.

    Args:
        b, noise_b: ``[N,R]``; a: ``[R,K]``; noise_a: ``[R,K]``, None where ``a`` is frozen.
        scale: s.
    """
    if noise_a is None:
        return scale * (noise_b @ a), torch.zeros(b.shape[0], a.shape[1], dtype=b.dtype, device=b.device)
    return scale * (noise_b @ a + b @ noise_a), scale * (noise_b @ noise_a)


def squared_parts(b: Tensor, a: Tensor, noise_b: Tensor, noise_a: Tensor | None, scale: float) -> NoiseParts:
    """Squared Frobenius norms of what :func:`decompose` returns, summed in float64."""
    linear, quadratic = decompose(b, a, noise_b, noise_a, scale)
    return NoiseParts(float(linear.double().square().sum()), float(quadratic.double().square().sum()))


def expected_parts(b: Tensor, a: Tensor, scale: float, variance: float, trains_a: bool) -> NoiseParts:
    """Expectation of :func:`squared_parts` over independent noise of variance v on each trained number.

    After T steps v is the sum of the steps' variances: independent noises add. (The gradients' answer to earlier noise
    is left out: this is noise on a given path.)

    Args:
        b: ``[N,R]``; a: ``[R,K]``.
        scale: s; variance: v.
        trains_a: LoRA; False for FFA-LoRA.
    """
    (n, r), k = b.shape, a.shape[1]
    linear = n * float(a.double().square().sum())
    if not trains_a:
        return NoiseParts(scale**2 * variance * linear, 0.0)
    linear += k * float(b.double().square().sum())
    return NoiseParts(scale**2 * variance * linear, scale**2 * variance**2 * n * r * k)


def draw_noise(layout: Layout, noise: SeededNoise, client_id: int, stds: Sequence[float]) -> Tensor:
    """The sum of the noise of several steps as the engine would add it, float32 ``[P]``; padding stays zero.

    Args:
        layout: whose columns.
        noise: the source; (key, client, step, parameter) decide each number.
        client_id: whose noise.
        stds: of each step: lr · σC / batch.
    """
    index = layout.parameter_index()
    state, total = torch.zeros(1, layout.width), torch.zeros(1, layout.width, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    for step, std in enumerate(stds):
        privatize_step_(
            state,
            total,
            client_id=torch.tensor([client_id]),
            step=torch.tensor([step]),
            noise_std=one * std,
            denominator=one,
            lr=-one,
            key=noise.key,
            index=index,
        )
    return state[0]
