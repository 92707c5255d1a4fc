"""Single operations as Opacus and opake compute them, for the cases of ``op_peers``; each where it is installed."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

Inputs = SimpleNamespace
HAVE_OPACUS, HAVE_OPAKE = find_spec("opacus") is not None, find_spec("opake") is not None


def _lora_b(n: int, r: int) -> nn.Linear:
    """The layer whose weight is b, as Opacus's samplers are given it (they read no number of it)."""
    return nn.Linear(r, n, bias=False, device="meta")


def opacus_gradients(dy: Tensor, h: Tensor, b: Tensor, scale: float) -> tuple[Tensor, ...]:
    """``dh`` of autograd, the per-sample gradients of Opacus's hooks and their squared norms; dy ``[S,T,N]``."""
    from opacus.grad_sample.linear import compute_linear_grad_sample

    layer, scaled = _lora_b(*b.shape), dy * scale
    g = compute_linear_grad_sample(layer, [h], scaled)[layer.weight]
    squares = torch.linalg.vector_norm(g.float().reshape(len(g), -1), dim=1).square()
    return (scaled @ b).flatten(0, 1), g.reshape(len(g), -1), squares


def opacus_norms(dy: Tensor, h: Tensor, b: Tensor, scale: float) -> tuple[Tensor, ...]:
    """``dh`` of autograd and the squared norms of Opacus's ghost clipping, which forms no gradients."""
    from opacus.grad_sample.linear import compute_linear_norm_sample

    layer, scaled = _lora_b(*b.shape), dy * scale
    norms = compute_linear_norm_sample(layer, [h], scaled)[layer.weight]
    return (scaled @ b).flatten(0, 1), h.new_empty(0), norms.float().square()


def opake_product(i: Inputs, scale: float) -> tuple[Tensor, ...]:
    """opake's whole adapted forward of one projection (on CUDA devices only)."""
    from opake.patches.kernels import opake_lora_w

    with torch.no_grad():
        return (opake_lora_w(i.x[None], i.w, i.a.T, i.b[0].T, scale)[0],)


def opake_clip(i: Inputs) -> tuple[Tensor, ...]:
    """opake's clipped sum of given rows; on a GPU by its fused kernels, which its runtime patches register."""
    if not hasattr(i, "opake"):
        from opake.dpsgd.clipping.fun import clipped_fun
        from opake.patches import apply_runtime_patches

        apply_runtime_patches(compat=False)
        i.opake = clipped_fun(_row, clipping_norm=float(i.limit))
    call, state = i.opake
    return (call(i.arena, state=state)[0].pytree[None],)


def _row(row: Tensor) -> Tensor:
    return row


def opake_step(i: Inputs) -> tuple[Tensor, ...]:
    """opake's Gaussian noise on a clipped sum in float32, and the SGD step as its users write it."""
    if not hasattr(i, "opake"):
        from opake.dpsgd.noise import gaussian_noise
        from opake.random import key

        i.opake = gaussian_noise(noise_multiplier=float(i.std), key=key(0))
        i.float_total = i.total.float()
    call, state = i.opake
    noisy: Any = call(_clipped(i.float_total), state)[0]
    return (i.state.add_(noisy.pytree / i.one.float(), alpha=-1e-3),)


def _clipped(total: Tensor) -> Any:
    from opake.types import clipped

    return clipped(total, max_norm=1.0)
