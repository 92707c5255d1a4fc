"""Layers of bare torch that read a linear layer's weight beside its forward, where no adapter can answer."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def unread_outputs(model: nn.Module) -> dict[str, str]:
    """Output projections of ``nn.MultiheadAttention``, by dotted name, and why no adapter belongs there."""
    return {
        f"{name}.out_proj".lstrip("."): (
            f"{name or type(module).__name__} is an nn.MultiheadAttention, which reads the weight of its out_proj and "
            "never calls the layer, so that an adapter there would change nothing; leave it out (exclude_modules)"
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention) and type(module).forward is nn.MultiheadAttention.forward
    }


def leave_fast_path(model: nn.Module, targets: Iterable[nn.Module]) -> None:
    """Has torch's Transformer encoders call their layers in evaluation too, where these hold one of ``targets``: their
    fast path reads weights alone. Outputs stay the same to rounding.
    """
    inside = set(targets)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerEncoder) and inside & set(module.modules()):
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False
            else:
                module.activation_relu_or_gelu = 0
