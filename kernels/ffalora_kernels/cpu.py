"""The C++ kernels of csrc/ behind the operations' signatures. Raises ImportError where the extension was not built.

float32 and bfloat16 activations run in C++. float16 and float64 activations, and a ``total`` whose rows are not
contiguous, go to the reference functions: float16 is rare on processors, and float64 serves gradient checks.
"""

from __future__ import annotations

import torch  # the extension uses the OpenMP runtime that torch loads, so torch comes first
from torch import Tensor

from . import reference
from .checks import check_limits

try:
    from . import _cpu, cpu_attention, cpu_head_loss
except ImportError as missing:
    raise ImportError(
        f"the C++ extension ffalora_kernels._cpu is not usable ({missing}); "
        "it is built by `pip install .` where a C++17 compiler is found and FFALORA_NO_EXTENSION is not set"
    ) from missing

#: Number formats of activations that run in C++.
COMPILED = (torch.float32, torch.bfloat16)
_WORD32, _WORD64 = 2**32 - 1, 2**64 - 1


def _activations(t: Tensor) -> _cpu.Activations:
    return _cpu.Activations(t.data_ptr(), t.shape[1], t.stride()[0], t.dtype is torch.bfloat16)


def _segments(offsets: Tensor, client: Tensor) -> _cpu.Segments:
    return _cpu.Segments(offsets.data_ptr(), client.data_ptr(), client.numel())


def _adapter(b: Tensor) -> _cpu.AdapterB:
    return _cpu.AdapterB(b.data_ptr(), b.shape[0], b.stride()[0], b.dtype is torch.bfloat16)


def _columns(arena: Tensor, column: int, squares: Tensor | None, slot: int, accumulate: bool) -> _cpu.ArenaColumns:
    first = arena.data_ptr() + 4 * column
    if squares is None:
        return _cpu.ArenaColumns(first, arena.stride()[0], accumulate, 0, 0)
    row, column_stride = squares.stride()
    return _cpu.ArenaColumns(first, arena.stride()[0], accumulate, squares.data_ptr() + 8 * slot * column_stride, row)


def _matrix(t: Tensor | None) -> _cpu.Matrix:
    return _cpu.Matrix(0, 0) if t is None else _cpu.Matrix(t.data_ptr(), t.stride()[0])


def expand(y: Tensor, h: Tensor, b: Tensor, offsets: Tensor, client: Tensor, scale: float, longest: int) -> None:
    """``expand_`` in C++: ``y`` is read and written once, four tokens at a time."""
    if y.dtype not in COMPILED:
        return reference.expand_ref(y, h, b, offsets, client, scale, longest)
    segments = _segments(offsets, client)
    _cpu.expand(_activations(y), _activations(h), _adapter(b), segments, scale, torch.get_num_threads())


def backward(
    dy: Tensor, h: Tensor, b: Tensor, offsets: Tensor, client: Tensor, scale: float, longest: int,
    arena: Tensor, column: int, squares: Tensor | None, slot: int, accumulate: bool, deterministic: bool,
) -> Tensor:  # fmt: skip
    """``backward`` in C++: ``dy`` comes from memory once, ``g`` is written once. It is always deterministic."""
    if dy.dtype not in COMPILED:
        return reference.backward_ref(
            dy, h, b, offsets, client, scale, longest, arena, column, squares, slot, accumulate, deterministic
        )
    dh = torch.empty_like(h, memory_format=torch.contiguous_format)
    _cpu.backward(
        _activations(dy), _activations(h), _adapter(b), _activations(dh), _segments(offsets, client), scale,
        _columns(arena, column, squares, slot, accumulate), torch.get_num_threads(),
    )  # fmt: skip
    return dh


def outer(
    p: Tensor, q: Tensor | None, offsets: Tensor, scale: float, longest: int,
    arena: Tensor, column: int, squares: Tensor | None, slot: int, accumulate: bool,
) -> None:  # fmt: skip
    """``outer`` in C++; ``q`` None sums the columns of ``p``."""
    if p.dtype not in COMPILED:
        return reference.outer_ref(p, q, offsets, scale, longest, arena, column, squares, slot, accumulate)
    segments = _cpu.Segments(offsets.data_ptr(), 0, offsets.numel() - 1)
    narrow = _cpu.Activations(0, 1, 0, False) if q is None else _activations(q)
    target = _columns(arena, column, squares, slot, accumulate)
    _cpu.outer(_activations(p), narrow, segments, scale, target, torch.get_num_threads())


def clip_reduce(
    total: Tensor, arena: Tensor, squares: Tensor | None, client: Tensor,
    max_grad_norm: Tensor, group_columns: Tensor, mode: str, gamma: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``clip_reduce_`` in C++: float64 sums, the arena read once (twice where the squared norms are not given)."""
    if arena.dtype is not torch.float32 or (total.shape[1] > 1 and total.stride()[1] != 1):
        return reference.clip_reduce_ref(total, arena, squares, client, max_grad_norm, group_columns, mode, gamma)
    check_limits(max_grad_norm, mode)
    limits, given = max_grad_norm.contiguous(), None if squares is None else squares.contiguous()
    client, group_columns = client.contiguous(), group_columns.contiguous()
    shape = (arena.shape[0], limits.shape[1])
    factors, norms = total.new_empty(shape), total.new_empty(shape)
    clipping = _cpu.Clipping(
        clients=total.shape[0], columns=total.shape[1], total=_matrix(total), arena=_matrix(arena),
        squares=0 if given is None else given.data_ptr(),
        client=client.data_ptr(), segments=shape[0], max_grad_norm=limits.data_ptr(),
        group_columns=group_columns.data_ptr(), groups=shape[1], automatic=mode == "automatic", gamma=gamma,
        factors=factors.data_ptr(), norms=norms.data_ptr(),
    )  # fmt: skip
    _cpu.clip_reduce(clipping, torch.get_num_threads())
    return factors, norms


def privatize_step(
    state: Tensor, *, exp_avg: Tensor | None, exp_avg_sq: Tensor | None, total: Tensor, anchor: Tensor | None,
    client_id: Tensor, step: Tensor, age: Tensor, noise_std: Tensor, denominator: Tensor, lr: Tensor,
    index: Tensor | None, key: int, stream: int, optimizer: str,
    beta1: float, beta2: float, eps: float, weight_decay: float, mu: float, dp_bias_correction: bool,
) -> None:  # fmt: skip
    """``privatize_step_`` in C++: noise, division, proximal term and optimiser in one pass over the state."""
    if total.shape[1] > 1 and total.stride()[1] != 1:
        return reference.privatize_step_ref(
            state, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq, total=total, anchor=anchor, client_id=client_id, step=step,
            age=age, noise_std=noise_std, denominator=denominator, lr=lr, index=index, key=key, stream=stream,
            optimizer=optimizer, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, mu=mu,
            dp_bias_correction=dp_bias_correction,
        )  # fmt: skip
    client_id, step, age = client_id.contiguous(), step.contiguous(), age.contiguous()
    noise_std, denominator, lr = noise_std.contiguous(), denominator.contiguous(), lr.contiguous()
    index = None if index is None else index.contiguous()
    tensors = _cpu.StepTensors(
        state=_matrix(state), exp_avg=_matrix(exp_avg), exp_avg_sq=_matrix(exp_avg_sq), total=_matrix(total),
        anchor=_matrix(anchor), clients=state.shape[0], columns=state.shape[1], client_id=client_id.data_ptr(),
        step=step.data_ptr(), age=age.data_ptr(), noise_std=noise_std.data_ptr(), denominator=denominator.data_ptr(),
        lr=lr.data_ptr(), index=0 if index is None else index.data_ptr(),
    )  # fmt: skip
    update = _cpu.Update(
        adamw=optimizer == "adamw", beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, mu=mu,
        dp_bias_correction=dp_bias_correction,
    )  # fmt: skip
    _cpu.privatize_step(tensors, update, key=key & _WORD64, stream=stream & _WORD32, threads=torch.get_num_threads())


IMPLEMENTATIONS = {
    "expand_": expand,
    "backward": backward,
    "outer": outer,
    "clip_reduce_": clip_reduce,
    "privatize_step_": privatize_step,
    "linear_cross_entropy": cpu_head_loss.linear_cross_entropy,
    "packed_attention": cpu_attention.packed_attention,
    "packed_attention_gradient": cpu_attention.packed_attention_gradient,
}
