"""Which shapes are measured on a GPU: operations, single layers, whole models. ``quick`` takes tiny ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from arena_peers import clip_case, step_case
from op_peers import LAYERS, OpCase, backward_case, expand_case, layer_of, outer_case, product_case
from peers import STEPS
from torch import Tensor, nn
from workload import Workload, llama, ragged, roberta, short

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
Make = Callable[[], OpCase]
#: Layer, segments, tokens of a segment, rank, dtype. One sweep after another around S32 T128 R8 in bfloat16.
SWEEP: list[tuple[str, int, int, int, torch.dtype]] = [
    *((name, 32, 128, 8, BF16) for name in LAYERS),
    *(("llama-7b q", 8192 // t, t, 8, BF16) for t in (256, 512, 1024, 2048, 4096)),
    *(("roberta-large q", 32, 128, r, BF16) for r in (4, 16, 32, 64)),
    *(("roberta-large q", s, 128, 8, BF16) for s in (1, 8, 64, 256)),
    *(("roberta-large q", 32, 128, 8, dtype) for dtype in (FP16, FP32)),
]
QUICK = [("roberta-base q", 4, 16, 4, BF16), ("roberta-base q", 4, 16, 4, FP32)]
#: Tokens, width and vocabulary of the heads of SmolLM2-135M, Llama-3.2-1B, Llama-3-8B and Gemma-2-2B.
HEADS = ((8192, 576, 49152), (8192, 2048, 128256), (8192, 4096, 128256), (8192, 2304, 256000))
ARENAS = ((32, 393216), (256, 393216), (8, 4194304))
_RAGGED_PEERS = [
    "floor",
    "peft",
    "peft, a frozen",
    "opacus hooks, a frozen",
    "opacus ghost, a frozen",
    "ours",
    "ours, without graphs",
    "ours, not private",
]
_LAYER_PEERS = [
    "peft",
    "peft, a frozen",
    "opacus hooks",
    "opacus hooks, a frozen",
    "opacus ghost, a frozen",
    "ours",
    "ours, merged",
]


def ops(device: torch.device, quick: bool, copies: int | None = None) -> Iterator[Make]:
    """Makers of all operation cases, each with ``copies`` sets of inputs that take turns [4, quick 2]. torch.compile
    takes part once an operation: it compiles for seconds.
    """
    copies = copies or (2 if quick else 4)
    compiled: set[str] = set()

    def once(op: str, dtype: torch.dtype = BF16) -> bool:
        first = op not in compiled and dtype == BF16 and not quick
        compiled.update([op] if first else [])
        return first

    arenas = ((4, 6000),) if quick else ARENAS
    for s, p in arenas:
        for given in (True, False):
            yield partial(clip_case, s, p, device, copies, once("clip_reduce_"), given)
    for p in dict.fromkeys(p for _, p in arenas):
        yield partial(step_case, p, device, copies, once("privatize_step_"))
    for where, s, t, r, dtype in QUICK if quick else SWEEP:
        q = layer_of(where, s, t, r, dtype)
        for op, make in (
            ("expand_", expand_case), ("backward", backward_case), ("outer", outer_case), ("product", product_case)
        ):  # fmt: skip
            if op == "product" and not quick and (s, t, r) != (32, 128, 8):
                continue
            yield partial(make, where, q, dtype, device, copies, once(op, dtype))


class OneLinear(nn.Module):
    """A single linear layer whose input wants a gradient, as one inside a model does."""

    def __init__(self, k: int, n: int):
        super().__init__()
        self.linear = nn.Linear(k, n)

    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.linear(x.detach().to(next(self.parameters()).dtype).requires_grad_()))


class _Activations:
    """Random inputs and random gradients of the output; a sample's loss is their inner product."""

    def __init__(self, s: int, t: int, k: int, n: int, dtype: torch.dtype, device: torch.device):
        generator = torch.Generator(device).manual_seed(0)
        self.lengths = np.full(s, t)
        self._x = torch.randn(s, t, k, generator=generator, device=device).to(dtype)
        self._dy = torch.randn(s, t, n, generator=generator, device=device).to(dtype)

    def collate(self, indices: np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
        rows = torch.from_numpy(np.asarray(indices)).to(self._x.device)
        return {"x": self._x[rows]}, self._dy[rows]


def one_layer(where: str, s: int, t: int, r: int, dtype: torch.dtype, device: torch.device) -> Workload:
    """Training a single adapted linear layer, optimiser step included."""
    k, n = LAYERS[where]

    def build(dtype: torch.dtype, attention: str) -> nn.Module:
        torch.manual_seed(0)
        return OneLinear(k, n).requires_grad_(False).to(device=device, dtype=dtype)

    def losses(output: SimpleNamespace, dy: Tensor) -> Tensor:
        return (output.logits.float() * dy.float()).sum((1, 2))

    name = f"{where} S{s} T{t} R{r} {short(dtype)}"
    return Workload(
        name, build, "", ("linear",), _Activations(s, t, k, n, dtype, device), [np.arange(s)], losses, device, rank=r,
        max_grad_norm=float(n), dtype=dtype,
    )  # fmt: skip


def layers(device: torch.device, quick: bool) -> list[tuple[Workload, list[str]]]:
    """Workloads of single layers and who takes part."""
    shapes = QUICK[1:] if quick else [SWEEP[3], SWEEP[7], ("llama-7b q", 4, 1024, 8, BF16), SWEEP[-1]]
    return [(one_layer(*shape, device), _LAYER_PEERS) for shape in shapes]


def models(device: torch.device, quick: bool) -> list[tuple[Workload, list[str]]]:
    """Workloads of whole models and who takes part: everybody."""
    if quick:
        return [
            (roberta(device, 32, 2, 4, 100, samples=8, batch=4, length=12, rank=4), list(STEPS)),
            (ragged(roberta(device, 32, 2, 4, 100, samples=8, length=12, rank=4), 2, 16, 4), ["floor", "ours"]),
            (llama(device, 32, 2, 4, 100, samples=4, batch=2, length=12, rank=4), ["floor", "opake", "ours"]),
        ]
    without_opake = [name for name in STEPS if "opake" not in name]
    large = roberta(device, dtype=BF16)
    return [
        (large, without_opake),
        (llama(device, dtype=BF16), list(STEPS)),
        (ragged(large), _RAGGED_PEERS),
        (roberta(device, dtype=FP32), without_opake),
    ]


def batches(device: torch.device, quick: bool) -> list[tuple[Workload, list[str]]]:
    """The same model with growing batches, for memory."""
    names = ["peft", "opacus hooks", "opacus hooks, a frozen", "opacus ghost, a frozen", "ours"]
    if quick:
        sizes = (2, 4)
        return [(roberta(device, 32, 2, 4, 100, samples=b, batch=b, length=12, rank=4), names) for b in sizes]
    return [(roberta(device, samples=b, batch=b, dtype=BF16), names) for b in (8, 16, 32, 64, 128)]
