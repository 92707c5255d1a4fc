"""Single operations on arena and state, ours, rivals' and torch's: clipping and summing, noise and step."""

from __future__ import annotations

import torch
from op_peers import Inputs, OpCase, with_compiled
from peer_ops import HAVE_OPAKE, opake_clip, opake_step
from torch import Tensor

import ffalora_kernels as ffk
from ffalora_kernels import traffic


def _clip_ours(i: Inputs) -> tuple[Tensor, ...]:
    i.total.zero_()
    ffk.clip_reduce_(i.total, i.arena, i.client, i.limit, i.columns, i.squares if i.given else None)
    return (i.total,)


def _clip_torch(i: Inputs) -> tuple[Tensor, ...]:
    factors = (i.limit[0] / (torch.linalg.vector_norm(i.arena, dim=1) + 1e-6)).clamp(max=1.0).float()
    return ((factors @ i.arena)[None],)


def clip_case(s: int, p: int, device: torch.device, copies: int, compiled: bool, given: bool) -> OpCase:
    """Clip factors and the clipped sum of an arena ``[S,P]``; torch computes both in float32."""
    inputs = []
    for seed in range(copies):
        arena = torch.randn(s, p, generator=torch.Generator(device).manual_seed(seed), device=device)
        squares = arena.double().square().sum(1, keepdim=True)
        inputs.append(
            Inputs(
                arena=arena,
                squares=squares,
                given=given,
                total=torch.zeros(1, p, dtype=torch.float64, device=device),
                client=torch.zeros(s, dtype=torch.int32, device=device),
                limit=squares.mean().sqrt().reshape(1, 1) * 0.9999,
                columns=torch.tensor([0, p], dtype=torch.int32, device=device),
            )
        )
    first = inputs[0]
    factors = (first.limit[0] / first.squares[:, 0].sqrt()).clamp(max=1.0)
    expected = (factors @ first.arena.double())[None]
    name = f"clip_reduce_ S{s} P{p} {'norms given' if given else 'norms from the arena'}"
    candidates = with_compiled({"ours": _clip_ours, "torch": _clip_torch}, _clip_torch, compiled)
    if HAVE_OPAKE and not given:
        candidates["opake"] = opake_clip
    return OpCase(
        name,
        traffic.clip_reduce_floor(s, p, 1, 1, given),
        candidates,
        inputs,
        (expected,),
        1e-5,
        (2 if given else 4) * s * p,
    )


def _step_ours(i: Inputs) -> tuple[Tensor, ...]:
    ffk.privatize_step_(
        i.state, i.total, client_id=i.whole, step=i.whole, noise_std=i.std, denominator=i.one, lr=i.lr, key=1
    )
    return (i.state,)


def _step_torch(i: Inputs) -> tuple[Tensor, ...]:
    noisy = i.total.float() + i.std.float() * torch.randn_like(i.state)
    return (i.state.add_(noisy / i.one.float(), alpha=-1e-3),)


def step_case(p: int, device: torch.device, copies: int, compiled: bool) -> OpCase:
    """Noise, division and an SGD step on a state ``[1,P]``; noise 0 in the comparison of results."""
    inputs = []
    for seed in range(copies):
        generator = torch.Generator(device).manual_seed(seed)
        one = torch.ones(1, dtype=torch.float64, device=device)
        inputs.append(
            Inputs(
                state=torch.randn(1, p, generator=generator, device=device),
                std=one * (1.0 if seed else 0.0),
                one=one,
                total=torch.randn(1, p, generator=generator, device=device).double(),
                lr=one * 1e-3,
                whole=torch.zeros(1, dtype=torch.int64, device=device),
            )
        )
    expected = inputs[0].state.double() - 1e-3 * inputs[0].total
    candidates = with_compiled({"ours": _step_ours, "torch": _step_torch}, _step_torch, compiled)
    if HAVE_OPAKE:
        candidates["opake"] = opake_step
    name = f"privatize_step_ P{p} sgd"
    return OpCase(name, traffic.privatize_step_floor(1, p), candidates, inputs, (expected,), 1e-6, 4 * p)
