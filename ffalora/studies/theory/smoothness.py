"""Local smoothness: the largest |eigenvalue| of the loss's Hessian over an adapter's factors, and what bounds it.

With L the same constant over the adapted weights ``W = w + s·b a`` and ``G = ∂loss/∂W`` (spectral norms):

    b alone (FFA-LoRA):  ``L_b ≤ s²‖a‖² L``                            fixed factor, since a is frozen
    b and a (LoRA):      ``L_ba ≤ s²(‖a‖² + ‖b‖²) L + s‖G‖``           grows with the factors

with the maximum over layers of each factor (Sun et al., ICLR 2024, state that LoRA's loss has no such constant on all
of space). Derivation: ``docs/theory.md``, section 3. The loss is computed on the sum ``w + s·b a`` by
torch's own operations, which can be differentiated twice; the layers' fused formula cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...adapters import Adapters
from ...adapters.base_layers import has_plain_weight
from ...adapters.layers import AdaptedLinear
from .gradients import Batch

_DENSE = 3  # Lanczos needs more dimensions than it is asked for


@dataclass(frozen=True)
class Smoothness:
    """Curvature at one point of training.

    Attributes:
        factors: largest |eigenvalue| over the factors that are trained.
        b_alone: over every ``b`` with ``a`` held.
        weights: over the adapted weights themselves, L.
        a_norm, b_norm: largest spectral norm of a layer's ``√s·a`` and ``√s·b``: with these, a scale that is moved
            from one place to another changes nothing.
        gradient: largest ``s‖G‖`` of a layer.
        bound, bound_b: the bounds on ``factors`` and ``b_alone``.
    """

    factors: float
    b_alone: float
    weights: float
    a_norm: float
    b_norm: float
    gradient: float
    bound: float
    bound_b: float


def plain_loss(
    model: nn.Module,
    adapters: Adapters,
    losses: Callable[[Any, Tensor], Tensor],
    batches: Sequence[Batch],
    weights: Mapping[str, Tensor],
) -> Tensor:
    """The mean loss of the batches' samples as a function of the adapted weights, twice differentiable.

    Args:
        model: with adapters; adapters: their handle.
        losses: takes the model's output and targets, returns one loss a sample ``[S]``.
        batches: inputs and targets, on the model's device.
        weights: ``[N,K]`` by layer, in the place of base weight and adapter.

    Raises:
        ValueError: a layer without a plain weight (quantised), or of a shape that is not one linear layer's.
    """
    own = {}
    for name, weight in weights.items():
        layer = adapters.layers[name]
        if not isinstance(layer, AdaptedLinear) or not has_plain_weight(layer.base_layer) or layer.is_merged:
            raise ValueError(
                f"{name}: second derivatives need an unmerged adapter on a plain weight; load the model so"
            )
        base = layer.base_layer.weight
        turned = weight if isinstance(layer.base_layer, nn.Linear | nn.Conv2d) else weight.T
        own[f"{name}.base_layer.weight"] = turned.reshape(base.shape).to(base.dtype)
    total, count = torch.zeros(()), 0
    with adapters.disabled(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivatives
        for inputs, targets in batches:
            output = torch.func.functional_call(model, own, (), dict(inputs))
            total, count = total + losses(output, targets).sum(), count + len(targets)
    return total / count


def largest_eigenvalue(
    function: Callable[[Sequence[Tensor]], Tensor], point: Sequence[Tensor], tolerance: float = 1e-3, seed: int = 0
) -> float:
    """The eigenvalue of largest magnitude of the Hessian of ``function`` at ``point``, with its sign.

    Implicitly restarted Lanczos (ARPACK through scipy) on Hessian-vector products: one forward and backward pass, then
    one more backward pass a product (Pearlmutter 1994).

    Args:
        function: from tensors to a scalar, twice differentiable.
        point: where; tensors of any shapes.
        tolerance: relative accuracy of the eigenvalue.
        seed: of the vector that the iteration starts from.

    Raises:
        scipy.sparse.linalg.ArpackNoConvergence: the accuracy was not reached.
    """
    variables = [p.detach().clone().requires_grad_() for p in point]
    sizes = [v.numel() for v in variables]
    gradients = torch.autograd.grad(function(variables), variables, create_graph=True)

    def product(vector: np.ndarray) -> np.ndarray:
        pieces = torch.from_numpy(np.array(vector, dtype=np.float64).reshape(-1)).split(sizes)
        along = [p.view(v.shape).to(v) for p, v in zip(pieces, variables, strict=True)]
        found = torch.autograd.grad(gradients, variables, along, retain_graph=True, materialize_grads=True)
        return torch.cat([f.reshape(-1).double() for f in found]).cpu().numpy()

    count = sum(sizes)
    if count < _DENSE:
        values = np.linalg.eigvalsh(np.stack([product(row) for row in np.eye(count)]))
        return float(values[np.abs(values).argmax()])
    start = np.random.default_rng(seed).standard_normal(count)
    operator = LinearOperator((count, count), matvec=product, dtype=np.float64)
    return float(eigsh(operator, k=1, which="LM", v0=start, tol=tolerance, return_eigenvectors=False)[0])


def smoothness(
    model: nn.Module,
    adapters: Adapters,
    losses: Callable[[Any, Tensor], Tensor],
    batches: Sequence[Batch],
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Smoothness:
    """Measures every side of the two bounds at the model's own factors.

    Arguments as of :func:`plain_loss` and :func:`largest_eigenvalue`; a trained head is held where it is.

    Raises:
        ValueError: as :func:`plain_loss`.
    """
    names = list(adapters.layers)
    layers = [adapters.layers[name] for name in names]
    base = [layer.base_weight().detach().float() for layer in layers]
    bs, az = [layer.lora_B.detach() for layer in layers], [layer.lora_A.detach() for layer in layers]
    scales = [layer.scale for layer in layers]
    trains_a = any(layer.lora_A.requires_grad for layer in layers)

    def of_weights(weights: Sequence[Tensor]) -> Tensor:
        return plain_loss(model, adapters, losses, batches, dict(zip(names, weights, strict=True)))

    def of_factors(factors: Sequence[Tensor]) -> Tensor:
        free_a = factors[len(names) :] or az
        parts = zip(base, scales, factors[: len(names)], free_a, strict=True)
        return of_weights([w + s * (b @ a) for w, s, b, a in parts])

    point = [w + s * (b @ a) for w, s, b, a in zip(base, scales, bs, az, strict=True)]
    variables = [w.clone().requires_grad_() for w in point]
    slopes = torch.autograd.grad(of_weights(variables), variables)
    lipschitz = abs(largest_eigenvalue(of_weights, point, tolerance, seed))
    b_alone = abs(largest_eigenvalue(of_factors, bs, tolerance, seed))
    both = abs(largest_eigenvalue(of_factors, [*bs, *az], tolerance, seed)) if trains_a else b_alone
    a_squares = [s * _spectral(a) ** 2 for s, a in zip(scales, az, strict=True)]
    b_squares = [s * _spectral(b) ** 2 for s, b in zip(scales, bs, strict=True)]
    gradient = max(s * _spectral(g) for s, g in zip(scales, slopes, strict=True))
    bound_b = lipschitz * max(s * a for s, a in zip(scales, a_squares, strict=True))
    whole = max(s * (a + b) for s, a, b in zip(scales, a_squares, b_squares, strict=True))
    return Smoothness(
        factors=both,
        b_alone=b_alone,
        weights=lipschitz,
        a_norm=max(a_squares) ** 0.5,
        b_norm=max(b_squares) ** 0.5,
        gradient=gradient,
        bound=lipschitz * whole + gradient if trains_a else bound_b,
        bound_b=bound_b,
    )


def _spectral(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.double(), ord=2))
