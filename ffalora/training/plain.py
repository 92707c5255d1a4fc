"""The gradient of one sample or user by every layer's formula in plain torch and ordinary autograd: what the operations
are held to.

Nothing of ``ffalora_kernels`` takes part, nor the arena, nor segments: the layers' forward passes are put aside, and
their formulas computed in their place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..adapters import Adapters
from ..adapters.base_layers import is_fused, plain_weight, unfold
from ..adapters.dropout import DropoutMasks, masked_dropout
from ..adapters.layers import LowRank, TrainedLayer
from ..adapters.targets import not_compiled
from ..adapters.variants.base import Variant
from ..adapters.variants.bottleneck import Bottleneck
from ..data.tasks import Losses
from .dropout import DropoutKeys, keyed_dropout


def plain_gradient(
    model: nn.Module,
    adapters: Adapters,
    losses: Losses,
    inputs: Mapping[str, Tensor],
    targets: Tensor,
    row: Tensor,
    keys: DropoutKeys | None,
    views: int = 1,
) -> tuple[Tensor, bool]:
    """The gradient of one sample, or of one user's samples, alone, and whether it was computed in float32 throughout.

    Args:
        model, adapters, losses: as in ``segment_gradients``; a compiled model runs uncompiled.
        inputs: padded, a row a sample (a view); targets: ``[S, ...]``.
        row: float32 ``[P]``, the parameters.
        keys: of these samples' dropout; None where nothing drops out.
        views: rows that each sample has, of whose losses the mean counts.

    Returns:
        float32 ``[P]``, zero where the loss does not depend on a tensor, and the answer.
    """
    tensors = {
        place.name: row[place.columns].view(place.shape).clone().requires_grad_() for place in adapters.layout.places
    }
    masks = None if keys is None else keys.masks(row.device, inputs)
    model = not_compiled(model)
    eager = nullcontext() if model._compiled_call_impl is None else torch.compiler.set_stance("force_eager")
    narrow: list[bool] = []
    with eager, _plain_layers(adapters, tensors, masks, narrow), keyed_dropout(model, masks):
        loss = losses(model(**inputs), targets).sum() / views
        if loss.requires_grad:
            loss.backward()
    gradient = torch.zeros_like(row)
    for place in adapters.layout.places:
        grad = tensors[place.name].grad
        if grad is not None:
            gradient[place.columns] = grad.reshape(-1)
    return gradient, is_exact(model, row.device) and not any(narrow)


def is_exact(model: nn.Module, device: torch.device) -> bool:
    """Whether ``model`` computes in float32, as far as can be seen from outside: no narrower base, autocast or TF32."""
    if torch.is_autocast_enabled(device.type) or (device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32):
        return False
    return all(p.dtype in (torch.float32, torch.float64) for p in model.parameters())


@contextmanager
def _plain_layers(
    adapters: Adapters, tensors: Mapping[str, Tensor], masks: DropoutMasks | None, narrow: list[bool]
) -> Iterator[None]:
    """Within the block every trained layer computes its formula on ``tensors``, by names of places, and adds to
    ``narrow`` whether it did so under autocast (which may be on inside the model's forward alone).
    """
    modules = [layer.module for layer in adapters.trained_layers()]
    before = [module.__dict__.get("forward") for module in modules]
    try:
        for module, layer in zip(modules, adapters.trained_layers(), strict=True):
            own = {name: tensors[f"{layer.name}.{name}"] for name in layer.places}
            module.forward = partial(_formula, layer, own, masks, narrow)
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward


def _formula(
    layer: TrainedLayer, own: Mapping[str, Tensor], masks: DropoutMasks | None, narrow: list[bool], x: Tensor, *_: Any
) -> Tensor:
    base, autocast = layer.base_layer, torch.is_autocast_enabled(x.device.type)
    narrow.append(autocast)
    if isinstance(layer, LowRank):
        if is_fused(base) and not autocast:
            x = x.to(plain_weight(base).dtype)
        y = base(x)
        if isinstance(base, nn.Conv2d):
            return y + _low_rank(layer, own, masks, unfold(base, x)).transpose(-1, -2).reshape(y.shape).to(y.dtype)
        return y + _low_rank(layer, own, masks, x).to(y.dtype)
    if isinstance(layer, Variant):
        y = base(x)
        return y + _variant(layer, own["theta"], _wide(x), _wide(y)).to(y.dtype)
    weight, bias = own.get("weight", layer.weight), own.get("bias", layer.bias)
    return linear(_wide(x), weight, bias).to(x.dtype)


def _low_rank(layer: LowRank, own: Mapping[str, Tensor], masks: DropoutMasks | None, x: Tensor) -> Tensor:
    """``scale · b a x``, or ``scale · b core a x``, of the tensors that are trained here and the others' own."""
    x = _wide(masked_dropout(x, layer.p_dropout, masks) if layer.p_dropout else x)
    h = linear(x, own.get("lora_A", layer.lora_A).to(x.dtype))
    if layer.lora_core is not None:
        h = linear(h, own.get("lora_core", layer.lora_core).to(x.dtype))
    return layer.scale * linear(h, own.get("lora_B", layer.lora_B).to(x.dtype))


def _variant(layer: Variant, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    if isinstance(layer, Bottleneck):
        return layer.scale * linear(torch.relu(linear(y, layer.down.to(y.dtype))), theta.to(y.dtype))
    kept = layer._parameters["theta"]
    layer._parameters["theta"] = theta
    try:
        return linear(x, layer.delta().to(x.dtype))
    finally:
        layer._parameters["theta"] = kept


def _wide(x: Tensor) -> Tensor:
    """Half precision as float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
