"""Single operations of adapted layers, ours, rivals' and the best torch formulations, on shapes of real layers.

Every case has rotating inputs, candidates as functions of one set of inputs that return what they computed, the float64
result of the definition to compare with, and the bytes that must move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from peer_ops import HAVE_OPACUS, HAVE_OPAKE, opacus_gradients, opacus_norms, opake_product
from schemes import Layer
from torch import Tensor

import ffalora_kernels as ffk
from ffalora_kernels import Segments, traffic

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
        flops: products and sums of the formula.
    """

    name: str
    bytes: int
    candidates: dict[str, Candidate]
    inputs: list[Inputs]
    expected: tuple[Tensor, ...]
    tolerance: float
    flops: int = 0


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


def with_compiled(candidates: dict[str, Candidate], plain: Candidate, wanted: bool) -> dict[str, Candidate]:
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
        with_compiled(candidates, _expand_peft, compiled), inputs, (expected,), TOLERANCE[dtype], 2 * q.m * q.n * q.r,
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


def _backward_hooks(i: Inputs) -> tuple[Tensor, ...]:
    return opacus_gradients(*_split(i), i.b[0], SCALE)


def _backward_ghost(i: Inputs) -> tuple[Tensor, ...]:
    return opacus_norms(*_split(i), i.b[0], SCALE)


def backward_case(
    where: str, q: Layer, dtype: torch.dtype, device: torch.device, copies: int, compiled: bool
) -> OpCase:
    """Gradient of h, segment gradients and their squared norms. Ghost clipping forms no gradients (another backward
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
    if HAVE_OPACUS:
        candidates["Opacus hooks"] = _backward_hooks
    if HAVE_OPACUS and q.t**2 * q.s < 2**28:
        candidates["Opacus ghost"] = _backward_ghost
    return OpCase(
        _label("backward", where, q, dtype), traffic.backward_floor(q.m, q.n, q.r, q.s, q.e),
        with_compiled(candidates, _backward_bmm, compiled), inputs, expected, TOLERANCE[dtype], 4 * q.m * q.n * q.r,
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
        with_compiled({"ours": _outer_ours, "bmm": _outer_bmm}, _outer_bmm, compiled), inputs,
        (g.reshape(q.s, -1), g.square().sum((1, 2))), TOLERANCE[dtype], 2 * q.m * q.n * q.r,
    )  # fmt: skip


# ---- the whole adapted products --------------------------------------------------------------------------------------


def _product_ours(i: Inputs) -> tuple[Tensor, ...]:
    return (ffk.adapted_product(i.x, i.w, None, i.x @ i.a.T, i.b, i.segments, SCALE),)


def _product_addmm(i: Inputs) -> tuple[Tensor, ...]:
    return (F.linear(i.x, i.w).addmm_(i.x @ i.a.T, i.b[0].T, alpha=SCALE),)


def _product_peft(i: Inputs) -> tuple[Tensor, ...]:
    return (F.linear(i.x, i.w) + F.linear(F.linear(i.x, i.a), i.b[0]) * SCALE,)


def _product_merged(i: Inputs) -> tuple[Tensor, ...]:
    return (F.linear(i.x, torch.addmm(i.w, i.b[0], i.a, alpha=SCALE)),)


def product_case(where: str, q: Layer, dtype: torch.dtype, device: torch.device, copies: int, compiled: bool) -> OpCase:
    """The forward pass of an adapted layer from x, its base product included; 'LoRA merged' merges at each call.

    The bytes are those of ``adapted_product``: h counts as read once, a is left out.
    """
    inputs = []
    for seed in range(copies):
        generator = torch.Generator(device).manual_seed(seed)
        draw = lambda *shape, g=generator: torch.randn(*shape, generator=g, device=device)  # noqa: E731
        x, w = draw(q.m, q.k).to(dtype), (draw(q.n, q.k) / q.k**0.5).to(dtype)
        a, b = (draw(q.r, q.k) / q.k**0.5).to(dtype), draw(1, q.n, q.r).to(dtype)
        inputs.append(Inputs(x=x, w=w, a=a, b=b, segments=Segments.uniform(q.s, q.t, device=device)))
    x, w, a, b = (t.double() for t in (inputs[0].x, inputs[0].w, inputs[0].a, inputs[0].b[0]))
    expected = x @ w.T + SCALE * (x @ a.T) @ b.T
    candidates: dict[str, Candidate] = {
        "ours": _product_ours, "addmm_": _product_addmm, "PEFT eager": _product_peft, "LoRA merged": _product_merged,
    }  # fmt: skip
    if device.type == "cuda" and HAVE_OPAKE:
        candidates["opake"] = lambda i: opake_product(i, SCALE)
    flops = 2 * q.m * (q.n * (q.k + q.r) + q.k * q.r)
    return OpCase(
        _label("adapted_product", where, q, dtype), traffic.adapted_product_floor(q.m, q.n, q.k, q.r, q.e),
        with_compiled(candidates, _product_peft, compiled), inputs, (expected,), TOLERANCE[dtype], flops,
    )  # fmt: skip
