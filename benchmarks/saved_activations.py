"""Bytes that one adapted layer keeps from forward to backward, PEFT against ours: ``python
benchmarks/saved_activations.py``.

Counted with torch's saved-tensor hooks: every distinct storage that autograd keeps, the layer's parameters and the
input
itself left out (the layer before keeps or frees that), unless the adapter is what keeps the input alive.
"""

from __future__ import annotations

from collections.abc import Callable

import peft
import torch
from torch import Tensor, nn

from ffalora.adapters import AdapterConfig, TrainingPass, attach
from ffalora_kernels import Segments

TOKENS, K, N, R = 2048, 768, 768, 8


def saved_bytes(module: nn.Module, call: Callable[[], Tensor]) -> int:
    """Bytes kept by the forward pass of ``call``, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call()
    return sum(kept.values())


def layer(dropout: float, trains_a: bool, ours: bool) -> nn.Module:
    """One linear layer with an adapter, in training mode."""
    net = nn.Sequential(nn.Linear(K, N))
    if ours:
        attach(net, AdapterConfig(rank=R, target_modules=["0"], dropout=dropout, trained="both" if trains_a else "b"))
    else:
        net = peft.get_peft_model(net, peft.LoraConfig(r=R, target_modules=["0"], lora_dropout=dropout))
        for name, parameter in net.named_parameters():
            parameter.requires_grad_("lora_B" in name or (trains_a and "lora_A" in name))
    return net.train()


def private(dropout: float) -> int:
    """Bytes of our layer in a private pass with one sample for 32 tokens."""
    net = nn.Sequential(nn.Linear(K, N))
    adapters = attach(net, AdapterConfig(rank=R, target_modules=["0"], dropout=dropout))
    net.train()
    samples = TOKENS // 32
    arena, squares = torch.zeros(samples, adapters.layout.width), torch.zeros(samples, 1, dtype=torch.float64)
    segments = Segments.uniform(samples, 1)
    state = adapters.state()[None]
    x = torch.randn(samples, 32, K).requires_grad_() * 1
    current = TrainingPass(state, arena, squares, segments.client, segments.offsets, samples)
    with adapters.training_pass(current):
        holder = nn.ParameterList([nn.Parameter(t, requires_grad=False) for t in (state, *net.parameters())])
        return saved_bytes(holder, lambda: net(x))


def main() -> None:
    """Prints the table."""
    print("| trained | dropout | PEFT | ours | ours, private pass |\n| --- | --- | --- | --- | --- |")
    for trains_a in (False, True):
        for dropout in (0.0, 0.1):
            row = []
            for ours in (False, True):
                net = layer(dropout, trains_a, ours)
                x = torch.randn(TOKENS, K).requires_grad_() * 1
                row.append(saved_bytes(net, lambda net=net, x=x: net(x)))
            mine = "" if trains_a else f"{private(dropout):,}"
            print(f"| {'A and B' if trains_a else 'B'} | {dropout:g} | {row[0]:,} | {row[1]:,} | {mine} |")


if __name__ == "__main__":
    main()
