"""Single operations, ours and the best torch formulations, on shapes of real layers.

Every case has rotating inputs, candidates as functions of one set of inputs that return what they computed, the float64
result of the definition to compare with, and the bytes that must move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

import ffalora_kernels as ffk
from ffalora_kernels import Segments, traffic
from ffalora_kernels.traffic import Layer

Inputs = SimpleNamespace
Candidate = Callable[[Inputs], tuple[Tensor, ...]]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
SCALE = 0.5

#: Linear layers of well-known models: in-features and out-features.
LAYERS = {
    "roberta-base q": (768, 768), "roberta-base up": (768, 3072), "roberta-base down": (3072, 768),
    "roberta-large q": (1024, 1024), "roberta-large up": (1024, 4096), "roberta-large down": (4096, 1024),
    "llama-7b q": (4096, 4096), "llama-7b up": (4096, 11008), "llama-7b down": (11008, 4096),
    "llama-8b k": (4096, 1024), "llama-8b up": (4096, 14336), "llama-8b down": (14336, 4096),
}  # fmt: skip


@dataclass
class OpCase:
    """One operation on one shape.

    Attributes:
        name: in tables.
        bytes: the operation's floor.
        candidates: by provider; each returns its results in the order of ``expected``.
        inputs: several sets, for rotation.
        expected: results in float64 for the first set.
        tolerance: RMS(error)/RMS(reference) that a result may have.
    """

    name: str
    bytes: int
    candidates: dict[str, Candidate]
    inputs: list[Inputs]
    expected: tuple[Tensor, ...]
    tolerance: float


def layer_of(name: str, s: int, t: int, r: int, dtype: torch.dtype) -> Layer:
    """The sizes of a named layer with S segments of T tokens."""
    k, n = LAYERS[name]
    return Layer(s, t, k, n, r, torch.empty((), dtype=dtype).element_size())


def _label(op: str, where: str, q: Layer, dtype: torch.dtype) -> str:
    return f"{op} {where} S{q.s} T{q.t} R{q.r} {str(dtype).removeprefix('torch.')}"


def _draw(q: Layer, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, device=device)  # noqa: E731
    return Inputs(
        y=normal(q.m, q.n).to(dtype), dy=normal(q.m, q.n).to(dtype), h=normal(q.m, q.r).to(dtype), x=None,
        b=normal(1, q.n, q.r).to(dtype), segments=Segments.uniform(q.s, q.t, device=device),
        arena=torch.full((q.s, q.n * q.r), float("nan"), device=device),
        squares=torch.full((q.s, 1), float("nan"), dtype=torch.float64, device=device),
    )  # fmt: skip


def _rotation(q: Layer, dtype: torch.dtype, device: torch.device, copies: int) -> list[Inputs]:
    return [_draw(q, dtype, device, seed) for seed in range(copies)]


def _compiled(candidates: dict[str, Candidate], plain: Candidate, wanted: bool) -> dict[str, Candidate]:
    return candidates | ({"torch.compile": torch.compile(plain, dynamic=False)} if wanted else {})


# ---- expand_ -------------------------------------------------------------------------------------------------------


def _expand_ours(i: Inputs) -> tuple[Tensor, ...]:
    ffk.expand_(i.y, i.h, i.b, i.segments, SCALE)
    return (i.y,)


def _expand_addmm(i: Inputs) -> tuple[Tensor, ...]:
    return (i.y.addmm_(i.h, i.b[0].T, alpha=SCALE),)


def _expand_peft(i: Inputs) -> tuple[Tensor, ...]:
    return (i.y + (i.h @ i.b[0].T) * SCALE,)


def expand_case(where: str, q: Layer, dtype: torch.dtype, device: torch.device, copies: int, compiled: bool) -> OpCase:
    """The adapter's output added to the base layer's."""
    inputs = _rotation(q, dtype, device, copies)
    first = inputs[0]
    expected = first.y.double() + SCALE * (first.h.double() @ first.b[0].double().T)
    candidates = {"ours": _expand_ours, "addmm_": _expand_addmm, "PEFT eager": _expand_peft}
    return OpCase(
        _label("expand_", where, q, dtype), traffic.expand_floor(q.m, q.n, q.r, q.e),
        _compiled(candidates, _expand_peft, compiled), inputs, (expected,), TOLERANCE[dtype],
    )  # fmt: skip


# ---- backward ------------------------------------------------------------------------------------------------------


def _backward_ours(i: Inputs, deterministic: bool = True) -> tuple[Tensor, ...]:
    dh = ffk.backward(i.dy, i.h, i.b, i.segments, SCALE, i.arena, 0, i.squares, deterministic=deterministic)
    return dh, i.arena, i.squares[:, 0]


def _split(i: Inputs) -> tuple[Tensor, Tensor]:
    s = len(i.segments)
    return i.dy.view(s, -1, i.dy.shape[1]), i.h.view(s, -1, i.h.shape[1])


def _backward_bmm(i: Inputs) -> tuple[Tensor, ...]:
    dy, h = _split(i)
    g = torch.bmm(h.transpose(1, 2), dy).float() * SCALE
    return (i.dy @ i.b[0]) * SCALE, g.transpose(1, 2).reshape(len(g), -1), g.square().sum((1, 2))


def _backward_einsum(i: Inputs) -> tuple[Tensor, ...]:
    dy, h = _split(i)
    g = torch.einsum("stn,str->snr", dy, h).float() * SCALE
    return (i.dy @ i.b[0]) * SCALE, g.reshape(len(g), -1), g.square().sum((1, 2))


def _backward_ghost(i: Inputs) -> tuple[Tensor, ...]:
    dy, h = _split(i)
    grams = torch.bmm(dy, dy.transpose(1, 2)).float() * torch.bmm(h, h.transpose(1, 2)).float()
    return (i.dy @ i.b[0]) * SCALE, i.arena[:0], grams.sum((1, 2)) * SCALE**2


def backward_case(
    where: str, q: Layer, dtype: torch.dtype, device: torch.device, copies: int, compiled: bool
) -> OpCase:
    """Gradient of h, segment gradients and their squared norms. Ghost norms form no gradients (another backward
    does).
    """
    inputs = _rotation(q, dtype, device, copies)
    first = inputs[0]
    dy, h = (t.double() for t in _split(first))
    g = SCALE * torch.einsum("stn,str->snr", dy, h)
    expected = SCALE * (first.dy.double() @ first.b[0].double()), g.reshape(q.s, -1), g.square().sum((1, 2))
    candidates: dict[str, Candidate] = {
        "ours": _backward_ours,
        "bmm(hT, dy)": _backward_bmm,
        "einsum": _backward_einsum,
    }
    if device.type == "cuda":
        candidates["ours, atomic"] = lambda i: _backward_ours(i, deterministic=False)
    if q.t**2 * q.s < 2**28:
        candidates["ghost norms"] = _backward_ghost
    return OpCase(
        _label("backward", where, q, dtype), traffic.backward_floor(q.m, q.n, q.r, q.s, q.e),
        _compiled(candidates, _backward_bmm, compiled), inputs, expected, TOLERANCE[dtype],
    )  # fmt: skip


# ---- outer ---------------------------------------------------------------------------------------------------------


def _outer_ours(i: Inputs) -> tuple[Tensor, ...]:
    ffk.outer(i.h, i.dy, i.segments, SCALE, i.arena, 0, i.squares)
    return i.arena, i.squares[:, 0]


def _outer_bmm(i: Inputs) -> tuple[Tensor, ...]:
    dy, h = _split(i)
    g = torch.bmm(h.transpose(1, 2), dy).float() * SCALE
    return g.reshape(len(g), -1), g.square().sum((1, 2))


def outer_case(where: str, q: Layer, dtype: torch.dtype, device: torch.device, copies: int, compiled: bool) -> OpCase:
    """The gradient of a trained ``a`` per segment: ``[R, wide]``, here with the layer's out-features as the wide
    side.
    """
    inputs = _rotation(q, dtype, device, copies)
    dy, h = (t.double() for t in _split(inputs[0]))
    g = SCALE * torch.bmm(h.transpose(1, 2), dy)
    return OpCase(
        _label("outer", where, q, dtype), traffic.outer_floor(q.m, q.r, q.n, q.s, q.e),
        _compiled({"ours": _outer_ours, "bmm": _outer_bmm}, _outer_bmm, compiled), inputs,
        (g.reshape(q.s, -1), g.square().sum((1, 2))), TOLERANCE[dtype],
    )  # fmt: skip


# ---- clip_reduce_ and privatize_step_ ------------------------------------------------------------------------------


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
    candidates = _compiled({"ours": _clip_ours, "torch": _clip_torch}, _clip_torch, compiled)
    return OpCase(name, traffic.clip_reduce_floor(s, p, 1, 1, given), candidates, inputs, (expected,), 1e-5)


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
    candidates = _compiled({"ours": _step_ours, "torch": _step_torch}, _step_torch, compiled)
    name = f"privatize_step_ P{p} sgd"
    return OpCase(name, traffic.privatize_step_floor(1, p), candidates, inputs, (expected,), 1e-6)
