"""The layers that can be adapted: their sizes, their weights as ``[N,K]``, and whether their product is a plain one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def add_to_weight(base: nn.Module, delta: Tensor, name: str) -> None:
    """Adds ``delta [N,K]`` to the weight of ``base``, in the weight's dtype.

    Raises:
        ValueError: the layer (called ``name`` in the message) has no plain weight.
    """
    check_plain_weight(base, name)
    base.weight.copy_(weight_plus(base, delta))


def weight_plus(base: nn.Module, delta: Tensor) -> Tensor:
    """The plain weight of ``base`` with ``delta [N,K]`` added, in the weight's own shape and dtype."""
    w = base.weight
    delta = delta.T if conv1d(base) else delta.view(w.shape)
    return (w.to(torch.promote_types(w.dtype, delta.dtype)) + delta).to(w.dtype)


def check_plain_weight(base: nn.Module, name: str) -> None:
    """ValueError where a layer (called ``name`` in the message) has no plain weight that can hold a merged adapter."""
    if not has_plain_weight(base):
        raise ValueError(
            f"{name}: a {type(base).__name__} with a {type(base.weight).__name__} weight of {base.weight.dtype} cannot "
            "hold a merged adapter (quantised, or computed from others by a parametrisation); keep it beside the base, "
            "or merge into a copy that is neither"
        )


def has_plain_weight(base: nn.Module) -> bool:
    """Whether the weight is an ordinary floating-point tensor that the layer holds: not packed, not a quantised tensor
    subclass, not computed from other tensors each time it is read (parametrisations such as weight norm).
    """
    weight = base.weight
    is_held = any(held.get("weight") is weight for held in (base._parameters, base._buffers))
    return is_held and type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point()


def sharers(model: nn.Module, layer: nn.Module) -> list[str]:
    """Dotted names of the modules of ``model`` that hold the weight of ``layer`` as their own too (tied ones)."""
    weight = getattr(layer, "weight", None)
    return [
        name
        for name, module in model.named_modules()
        if module is not layer and any(p is weight for p in module.parameters(recurse=False))
    ]


def check_unshared(model: nn.Module, layer: nn.Module, name: str, change: str, remedy: str) -> None:
    """ValueError where other modules of ``model`` hold the weight of ``layer`` (called ``name``): what ``change`` names
    would change them too.
    """
    if others := sharers(model, layer):
        raise ValueError(
            f"{name} shares its weight with {others[0]}, which {change} would change too; {remedy}, or untie them first"
        )


def conv1d(base: nn.Module) -> Any:
    """transformers' class Conv1D (its weight is ``[K,N]``) where ``base`` is one, else None. Told by its name: models
    of bare torch need no transformers.
    """
    for kind in type(base).__mro__:
        if kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils":
            return kind
    return None


def plain_weight(base: nn.Module) -> Tensor:
    """The weight of a Linear, Conv1D or Conv2d as ``[N,K]``."""
    if isinstance(base, nn.Linear):
        return base.weight
    if isinstance(base, nn.Conv2d):
        return base.weight.flatten(1)
    return base.weight.T if conv1d(base) else base.weight


def is_fused(base: nn.Module) -> bool:
    """Whether the base product is exactly ``x wᵀ + bias`` with a plain, frozen weight, and nothing is hooked onto it. A
    weight that somebody trains beside the adapter gets its gradient from the layer's own product.
    """
    plain = nn.Linear if isinstance(base, nn.Linear) else conv1d(base)
    return (
        plain is not None
        and type(base).forward is plain.forward
        and has_plain_weight(base)
        and not base.weight.requires_grad
        and "forward" not in base.__dict__
        and not (base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks)
    )


def unfold(base: nn.Conv2d, x: Tensor) -> Tensor:
    """The patches a convolution multiplies: ``[B,C,H,W]`` to ``[B, patches, K]`` with K = channels · kernel size."""
    patches = nn.functional.unfold(x, base.kernel_size, base.dilation, base.padding, base.stride)
    return patches.transpose(-1, -2)


def size_of(base: nn.Module) -> tuple[int, int]:
    """N and K of a layer that can be adapted.

    Raises:
        ValueError: a convolution whose patches are not those of one linear layer.
    """
    if isinstance(base, nn.Conv2d):
        if base.groups != 1 or base.padding_mode != "zeros" or isinstance(base.padding, str):
            raise ValueError(
                f"a Conv2d with groups={base.groups}, padding={base.padding!r}, padding_mode={base.padding_mode!r} is "
                "not a linear layer of patches; groups=1 and numeric zero padding are needed: leave the layer out "
                "(exclude_modules)"
            )
        return base.out_channels, base.weight[0].numel()
    if conv1d(base):
        return base.weight.shape[1], base.weight.shape[0]
    return base.out_features, base.in_features
