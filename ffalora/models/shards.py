"""A frozen base in parts: each of several processes keeps a share of every weight, and all of them gather a layer's
weights while they compute with it (FSDP: Zhao et al. 2023; ``torch.distributed.fsdp.fully_shard``).

Nothing of the base is trained, so that weights are gathered and no gradient is ever reduced. What is trained stays
whole in every process.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from ..config import ConfigError

T = TypeVar("T")


def in_parts(read: Callable[[], T], base_of: Callable[[T], nn.Module], device: torch.device) -> T:
    """What ``read`` returns, with this process's part of every weight of its base alone, on ``device``. All processes
    of the default group call it alike; they read one after another, so that the memory of a machine holds one whole
    model at a time.

    A layer's weights are gathered when it is called and let go behind it, in the forward and in the backward pass;
    those that belong to no layer (embeddings, the last norm, a language model's head) are there for a whole pass. Those
    that ``save_for_backward`` keeps are the gathered ones, which the backward pass fills again before it reads them.

    Args:
        read: makes the model, on any device.
        base_of: the module of it that is cut and frozen; every forward pass calls it.

    Raises:
        ConfigError: a parameter that is no plain floating-point tensor.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh(device.type, (size,))
    for _ in range(rank):
        dist.barrier()
    try:
        found = read()
        parts = _cut(base_of(found), mesh)
    finally:  # whoever fails lets the others come to their own error
        for _ in range(size - rank):
            dist.barrier()
    # Of a module that lets its weights go behind its forward pass this would be true; the outermost one keeps them.
    warnings.filterwarnings("ignore", rf"FSDP2-wrapped module \(FSDP{type(parts[-1]).__qualname__}\) returned a view")
    for part in parts:  # memory that is first gathered into under inference mode could never be trained with
        part.unshard()
        part.reshard()
    return found


def _cut(base: nn.Module, mesh: DeviceMesh) -> list[Any]:
    for name, parameter in base.named_parameters():
        if type(parameter) is not nn.Parameter or not parameter.is_floating_point():
            raise ConfigError(
                f"model.shard=true cuts plain floating-point weights, and {name} is a {type(parameter).__name__} of "
                f"{parameter.dtype} (a quantised base); set it to false"
            )
        parameter.requires_grad_(False)
    parts = [*dict.fromkeys(_layers(base)), base]
    for part in parts:
        own = type(part)
        fully_shard(part, mesh=mesh)
        # What is cut has another class, and transformers knows by the name of a class which states a model can give.
        type(part).__module__, type(part).__qualname__ = own.__module__, own.__qualname__
    return parts


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of modules: a transformer's layers."""
    for child in module.children():
        is_member = isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList | nn.ModuleDict)
        yield from [child] if is_member else _layers(child)
