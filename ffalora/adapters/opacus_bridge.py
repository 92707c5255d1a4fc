"""Per-sample gradients for Opacus: its hooks on our layers give ``grad_sample`` with one kernel call a layer.

``attach`` registers the layers when Opacus is loaded already; otherwise call :func:`register` before ``make_private``.
An existing Opacus script then changes nothing but its adapter.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from ffalora_kernels import Segments, outer

from .layers import AdaptedLinear

_registered = False


def register() -> None:
    """Tells Opacus how the adapted layers' per-sample gradients and their norms are computed."""
    global _registered
    if _registered:
        return
    from opacus.grad_sample import register_grad_sampler, register_norm_sampler

    register_grad_sampler(AdaptedLinear)(sample_gradients)
    register_norm_sampler(AdaptedLinear)(sample_norms)
    _registered = True


def register_if_loaded() -> None:
    """As :func:`register`, if the program uses Opacus."""
    if "opacus" in sys.modules:
        register()


@torch.no_grad()
def sample_gradients(layer: AdaptedLinear, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Gradients of each sample, ``[S, *parameter.shape]``, as Opacus asks for them.

    Args:
        layer: the adapted layer, without dropout.
        activations: its input ``[S, ..., K]``, in a list.
        backprops: gradient of its output ``[S, ..., N]``.

    Raises:
        NotImplementedError: a layer with dropout (Opacus keeps the input from before the mask), or a convolution.
        RuntimeError: a layer whose adapter is merged or disabled: it takes no part in the output.
    """
    if layer.is_merged or not layer.is_enabled:
        state = "merged into its base weight; call unmerge()" if layer.is_merged else "disabled; leave disabled()"
        raise RuntimeError(f"{layer.name} has an adapter that does not train: it is {state} before the forward pass")
    if layer.p_dropout and layer.training:
        raise NotImplementedError(
            f"{layer.name}: Opacus keeps the input from before the adapter's dropout={layer.p_dropout}; set dropout=0, "
            "or train with ffalora's own engine"
        )
    if isinstance(layer.base_layer, nn.Conv2d):
        raise NotImplementedError(
            f"{layer.name}: adapted convolutions train with ffalora's own engine, not with Opacus"
        )
    x = activations[0]
    samples = x.shape[0]
    dy = backprops.reshape(-1, backprops.shape[-1])
    x = x.reshape(-1, x.shape[-1]).to(dy.dtype)
    segments = Segments.uniform(samples, len(x) // samples if samples else 0, device=x.device)
    gradients: dict[nn.Parameter, Tensor] = {}
    with torch.autocast(x.device.type, enabled=False):  # inside which a user may differentiate
        if layer.lora_B.requires_grad:
            h = x @ layer.lora_A.to(x.dtype).T
            gradients[layer.lora_B] = _outer(dy, h, segments, layer.scale, layer.lora_B)
        if layer.lora_A.requires_grad:
            dh = dy @ layer.lora_B.to(dy.dtype)
            gradients[layer.lora_A] = _outer(dh, x, segments, layer.scale, layer.lora_A)
    return gradients


def sample_norms(layer: AdaptedLinear, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Norms of each sample's gradients ``[S]``: of the gradients themselves, which a low rank makes cheap."""
    gradients = sample_gradients(layer, activations, backprops)
    return {parameter: g.flatten(1).norm(dim=1) for parameter, g in gradients.items()}


def _outer(p: Tensor, q: Tensor, segments: Segments, scale: float, like: nn.Parameter) -> Tensor:
    dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
    arena = torch.empty(len(segments), like.numel(), dtype=dtype, device=p.device)
    outer(p.contiguous(), q.contiguous(), segments, scale, arena, 0)
    return arena.view(-1, *like.shape)
