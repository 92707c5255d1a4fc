"""T0: the executable specification in float64 against autograd, single samples, Opacus and known vectors."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from cases import CASES, SCALE, make_segments

from ffalora_kernels import Segments, backward, clip_reduce_, expand_, outer, privatize_step_, use_backend
from ffalora_kernels.reference import gaussian_ref, philox_ref


@pytest.fixture(autouse=True)
def on_the_reference():
    with use_backend("reference"):
        yield


@pytest.mark.parametrize("name", CASES)
def test_reference_in_working_precision_equals_itself_in_float64(name: str) -> None:
    CASES[name]("reference")


def test_autocast_does_not_choose_the_formats_of_an_operation() -> None:
    torch.manual_seed(0)
    p, q, segments, arena = torch.randn(9, 7), torch.randn(9, 5), make_segments((4, 5)), torch.full((2, 35), math.nan)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outer(p, q, segments, SCALE, arena, 0)
    expected = torch.stack([SCALE * p[:4].T @ q[:4], SCALE * p[4:].T @ q[4:]])
    torch.testing.assert_close(arena.view(2, 7, 5), expected)


class _Adapter(torch.autograd.Function):
    """``y + scale · h bᵀ`` and its gradients by the operations under test, for one segment and one client."""

    @staticmethod
    def forward(ctx, y, h, b):
        segments = Segments.uniform(1, y.shape[0])
        out = y.clone()
        expand_(out, h, b[None], segments, SCALE)
        ctx.save_for_backward(h, b)
        ctx.segments = segments
        return out

    @staticmethod
    def backward(ctx, dy):
        h, b = ctx.saved_tensors
        arena = dy.new_full((1, b.numel()), math.nan)
        dh = backward(dy.contiguous(), h, b[None], ctx.segments, SCALE, arena, 0)
        return dy, dh, arena.view_as(b)


def test_backward_is_the_derivative_of_expand() -> None:
    torch.manual_seed(0)
    y, h, b = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 7), (5, 3), (7, 3)))
    assert torch.autograd.gradcheck(_Adapter.apply, (y, h, b))


@pytest.mark.parametrize("n_clients", [1, 2])
def test_segment_gradients_equal_autograd_of_one_sample_at_a_time(n_clients: int) -> None:
    torch.manual_seed(0)
    segments = make_segments((4, 0, 6, 1), n_clients)
    x, w, a = (torch.randn(*shape, dtype=torch.float64) for shape in ((11, 9), (7, 9), (3, 9)))
    b = torch.randn(n_clients, 7, 3, dtype=torch.float64)
    dy, h = torch.randn(11, 7, dtype=torch.float64), x @ a.T
    arena = torch.full((4, 21), math.nan, dtype=torch.float64)
    dh = backward(dy, h, b, segments, SCALE, arena, 0)
    bounds = segments.offsets.tolist()
    for i, c in enumerate(segments.client.tolist()):
        sample = slice(bounds[i], bounds[i + 1])
        own_b, own_h = b[c].clone().requires_grad_(), h[sample].clone().requires_grad_()
        (x[sample] @ w.T + SCALE * own_h @ own_b.T).backward(dy[sample])
        torch.testing.assert_close(arena[i].view(7, 3), own_b.grad)
        torch.testing.assert_close(dh[sample], own_h.grad)


def test_outer_equals_opacus_per_sample_gradients_of_a_linear_layer() -> None:
    opacus = pytest.importorskip("opacus")
    torch.manual_seed(0)
    layer = torch.nn.Linear(9, 5).double()
    hooked = opacus.GradSampleModule(copy.deepcopy(layer), loss_reduction="sum")
    x, dy = torch.randn(4, 6, 9, dtype=torch.float64, requires_grad=True), torch.randn(4, 6, 5, dtype=torch.float64)
    hooked(x).backward(dy)
    segments = Segments.uniform(4, 6)
    arena = torch.full((4, 50), math.nan, dtype=torch.float64)
    outer(dy.reshape(24, 5), x.detach().reshape(24, 9), segments, 1.0, arena, 0)
    outer(dy.reshape(24, 5), None, segments, 1.0, arena, 45)
    torch.testing.assert_close(arena[:, :45].view(4, 5, 9), hooked._module.weight.grad_sample)
    torch.testing.assert_close(arena[:, 45:], hooked._module.bias.grad_sample)


def test_backward_equals_opacus_per_sample_gradients_of_b() -> None:
    opacus = pytest.importorskip("opacus")
    torch.manual_seed(0)
    up = torch.nn.Linear(3, 7, bias=False).double()
    hooked = opacus.GradSampleModule(copy.deepcopy(up), loss_reduction="sum")
    h, dy = torch.randn(4, 6, 3, dtype=torch.float64, requires_grad=True), torch.randn(4, 6, 7, dtype=torch.float64)
    (SCALE * hooked(h)).backward(dy)
    arena = torch.full((4, 21), math.nan, dtype=torch.float64)
    rows = (dy.reshape(24, 7), h.detach().reshape(24, 3), up.weight.detach()[None])
    dh = backward(*rows, Segments.uniform(4, 6), SCALE, arena, 0)
    torch.testing.assert_close(arena.view(4, 7, 3), hooked._module.weight.grad_sample)
    torch.testing.assert_close(dh.view_as(h), h.grad)


def test_clipped_rows_never_exceed_the_norm_in_exact_arithmetic() -> None:
    torch.manual_seed(0)
    for magnitude in (1e-30, 1e-3, 1.0, 1e30):
        arena = torch.randn(64, 500) * magnitude
        limit = torch.full((64, 1), magnitude * 0.7, dtype=torch.float64)
        total = torch.zeros(64, 500, dtype=torch.float64)
        clip_reduce_(
            total, arena, torch.arange(64, dtype=torch.int32), limit, torch.tensor([0, 500], dtype=torch.int32)
        )
        assert (total.norm(dim=1) <= limit[:, 0]).all() and (total.norm(dim=1) > 0.999 * limit[:, 0]).all()


def test_philox_equals_the_published_test_vectors() -> None:
    """Random123's known answers for philox4x32-10: all zeros, all ones, and digits of pi."""
    ones = 0xFFFFFFFF
    known = (
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (ones << 32) | ones, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0x299F31D0 << 32) | 0xA4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    )
    for counter, key, answer in known:
        words = philox_ref(tuple(torch.tensor([c]) for c in counter), key)
        assert tuple(int(word) for word in words) == answer


def test_noise_is_standard_normal_and_independent_between_neighbours() -> None:
    z = gaussian_ref(12345, 3, 7, 0, torch.arange(200_000))
    assert abs(z.mean()) < 5 / math.sqrt(len(z)) and abs(z.var() - 1) < 5 * math.sqrt(2 / len(z))
    for lag in (1, 2, 3, 4):
        assert abs((z[lag:] * z[:-lag]).mean()) < 5 / math.sqrt(len(z))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_without_noise_equals_torch(momentum: float) -> None:
    _compare_with_torch(torch.optim.SGD, {"momentum": momentum, "weight_decay": 0.1}, "sgd", momentum)


def test_adamw_without_noise_equals_torch() -> None:
    _compare_with_torch(torch.optim.AdamW, {"betas": (0.9, 0.99), "weight_decay": 0.1}, "adamw", 0.9)


def _compare_with_torch(optimizer_class: type, settings: dict, optimizer: str, beta1: float) -> None:
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(1, 9, dtype=torch.float64).float().double())
    theirs = optimizer_class([parameter], lr=0.05, **settings)
    state, moments = parameter.detach().float(), [torch.zeros(1, 9) for _ in range(2)]
    with_moments = optimizer == "adamw" or beta1 > 0
    number = {"dtype": torch.float64}
    for step in range(1, 5):
        total = torch.randn(1, 9, **number)
        parameter.grad = total / 4
        theirs.step()
        privatize_step_(
            state, total, client_id=torch.tensor([0]), step=torch.tensor([step]), noise_std=torch.zeros(1, **number),
            denominator=torch.full((1,), 4.0, **number), lr=torch.full((1,), 0.05, **number), key=1,
            optimizer=optimizer,
            exp_avg=moments[0] if with_moments else None, exp_avg_sq=moments[1] if optimizer == "adamw" else None,
            age=torch.tensor([step]), beta1=beta1, beta2=0.99, weight_decay=0.1,
        )  # fmt: skip
    torch.testing.assert_close(state.double(), parameter.detach(), rtol=1e-6, atol=1e-6)
