"""How many tokens one physical batch takes: what fits into the memory that is free, up to where more is no faster."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ..adapters.targets import not_compiled

#: Most tokens of a pass. On a CPU whole private steps took the same time within 3% from 512 to 4096 tokens
#: (benchmarks/cpu.py), so that larger passes only cost memory; on a GPU this many fill it.
MOST_TOKENS = {"cpu": 2048, "cuda": 32768}
#: What one more pass costs, in tokens that it could compute instead. On a GPU an estimate: of RoBERTa-large a pass is
#: 1,200 kernels of at least two microseconds each, and an H100 takes 3.5 for a token; one whose host launches them, 20
#: times as much (docs/performance.md).
PASS_TOKENS = {"cpu": 64, "cuda": 1024}
#: Share of the free memory that saved activations may take. The rest is for the arena, for what a layer needs while it
#: computes, and for other programs.
SHARE = 0.25


def token_budget(model: nn.Module, data: Any, device: torch.device) -> int:
    """Tokens of one physical batch for this model, these samples and the memory that is free now.

    A power of two, so that a resumed run, whose machine has a little more or less memory, cuts its batches alike; set
    ``optimizer.token_budget`` where that must not depend on the machine at all.

    Args:
        model: on ``device``, with its adapters.
        data: ``lengths [n]`` and ``collate``; the longest sample is passed through the model once.
    """
    most = MOST_TOKENS.get(device.type, MOST_TOKENS["cuda"])
    if not len(data.lengths):
        return most
    longest = int(np.argmax(data.lengths))
    inputs, _ = data.collate(np.array([longest]))
    inputs = {name: value.to(device) for name, value in inputs.items()}
    each = saved_bytes(model, inputs) / max(1, int(data.lengths[longest]))
    affordable = max(1.0, SHARE * free_bytes(device) / max(each, 1.0))
    return min(most, 2 ** int(np.log2(affordable)))


def pass_tokens(device: torch.device) -> int:
    """What one more pass costs on a device, in tokens."""
    return PASS_TOKENS.get(device.type, PASS_TOKENS["cuda"])


def saved_bytes(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters and buffers not counted."""
    own: set[int] = set()
    kept: dict[int, int] = {}

    def know(part: nn.Module, *_: Any) -> None:
        tensors = [t for t in chain(part.parameters(), part.buffers()) if not isinstance(t, DTensor)]
        own.update(t.untyped_storage()._cdata for t in tensors)

    def record(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return t.detach()  # with its graph, it and what saved it would keep each other alive for ever

    eager = not_compiled(model)
    know(eager)
    gathered = [part.register_forward_pre_hook(know) for part in eager.modules() if isinstance(part, FSDPModule)]
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(record, lambda t: t):
            output = eager(**inputs)
        del output
    finally:
        for hook in gathered:
            hook.remove()
    return sum(kept.values())


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken on the device: of the machine, or of the container if that allows less."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(_machine_bytes(), _container_bytes(Path("/sys/fs/cgroup")))


def _machine_bytes() -> int:
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text(encoding="utf-8").splitlines() if meminfo.exists() else []:
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _container_bytes(group: Path) -> int:
    """What a control group (version 2) leaves; more than any machine has where there is none."""
    try:
        limit, used = ((group / name).read_text(encoding="utf-8").strip() for name in ("memory.max", "memory.current"))
        return 2**62 if limit == "max" else max(0, int(limit) - int(used))
    except (OSError, ValueError):
        return 2**62
