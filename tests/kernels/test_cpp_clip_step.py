"""C++ clip_reduce_ and privatize_step_ against the reference, whose sums are float64 too: agreement is near exact."""

from itertools import pairwise

import pytest
import torch

import ffalora_kernels as ffk
from ffalora_kernels import reference

_cpu = pytest.importorskip("ffalora_kernels._cpu", reason="the C++ extension is not built here")
INF, NAN = float("inf"), float("nan")


@pytest.fixture(params=[0, 1, 2], ids=["baseline", "avx2", "avx512"])
def instructions(request):
    """Runs the test with one instruction set, then returns to the best one."""
    best = _cpu.level()
    if not _cpu.set_level(request.param):
        pytest.skip("this processor lacks the instructions")
    yield
    _cpu.set_level(best)


def clip_on(backend, arena, client, limits, groups, squares=None, **kwargs):
    total = torch.ones(limits.shape[0], arena.shape[1], dtype=torch.float64)
    bounds = torch.tensor(groups, dtype=torch.int32)
    with ffk.use_backend(backend):
        return total, *ffk.clip_reduce_(total, arena, client, limits, bounds, squares, **kwargs)


@pytest.mark.parametrize("mode", ["flat", "automatic"])
@pytest.mark.parametrize("groups", [(0, 5003), (0, 7, 3000, 3000, 5003), (10, 4000)])
@pytest.mark.parametrize("given", [False, True])
def test_clipped_sum_equals_the_reference(mode, groups, given, instructions):
    torch.manual_seed(0)
    s, p, c, g = 23, 5003, 3, len(groups) - 1
    arena = torch.randn(s, p + 2)[:, :p] * torch.logspace(-3, 3, s)[:, None]
    client = torch.randint(c, (s,), dtype=torch.int32)
    limits = torch.rand(c, g, dtype=torch.float64) * 50
    limits[0, 0] = INF if mode == "flat" else 3.0
    squares = None
    if given:
        squares = torch.stack([arena[:, lo:hi].double().square().sum(1) for lo, hi in pairwise(groups)], 1)
    results = [clip_on(name, arena, client, limits, groups, squares, mode=mode) for name in ("cpp", "reference")]
    for actual, expected in zip(*results, strict=True):
        assert (actual - expected).abs().max() <= 1e-13 * expected[expected.isfinite()].abs().max()


@pytest.mark.parametrize("size", [1e-30, 1e-18, 1.0, 1e18, 1e30])
def test_clipped_row_keeps_the_norm_at_extreme_magnitudes(size, instructions):
    torch.manual_seed(1)
    arena = torch.randn(1, 4097) * size
    limits = torch.tensor([[size / 3]], dtype=torch.float64)
    total = torch.zeros(1, 4097, dtype=torch.float64)
    with ffk.use_backend("cpp"):
        ffk.clip_reduce_(total, arena, torch.zeros(1, dtype=torch.int32), limits, torch.tensor([0, 4097]).int())
    norm = total.norm().item()
    assert norm <= limits.item()
    assert norm >= limits.item() * (1 - 2e-6), "a finite row was dropped or clipped too far"


def test_row_with_nan_or_inf_contributes_exactly_zero(instructions):
    arena = torch.ones(4, 600)
    arena[1, 599], arena[2, 0] = NAN, INF
    client = torch.tensor([0, 0, 0, 0], dtype=torch.int32)
    limits = torch.full((1, 2), INF, dtype=torch.float64)
    total, factors, norms = clip_on("cpp", arena, client, limits, (0, 300, 600))
    assert torch.equal(total, torch.full_like(total, 3.0))
    assert factors.tolist() == [[1, 1], [0, 0], [0, 0], [1, 1]]
    assert norms.isfinite().all(1).tolist() == [True, False, False, True]


def test_no_segments_leave_the_sum_as_it_is(instructions):
    limits = torch.ones(2, 1, dtype=torch.float64)
    total, factors, _ = clip_on("cpp", torch.empty(0, 9), torch.empty(0, dtype=torch.int32), limits, (0, 9))
    assert torch.equal(total, torch.ones(2, 9, dtype=torch.float64)) and factors.shape == (0, 1)


def test_normals_equal_the_reference_on_every_instruction_set(instructions):
    key, n = 0x8123456789ABCDEF, 4001
    for first in (0, 1, 2, 3, 2**31 - n):
        normals = torch.empty(n, dtype=torch.float64)
        _cpu.gaussian(key, 7, 2**31, 3, first, n, normals.data_ptr())
        expected = reference.gaussian_ref(key, 7, 2**31, 3, torch.arange(first, first + n))
        assert (normals - expected).abs().max() <= 8e-15
        best = _cpu.level()
        _cpu.set_level(0)
        baseline = torch.empty_like(normals)
        _cpu.gaussian(key, 7, 2**31, 3, first, n, baseline.data_ptr())
        _cpu.set_level(best)
        assert torch.equal(normals, baseline)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw", "adamw_dp"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("anchored", [False, True])
def test_private_step_equals_the_reference(optimizer, padded, anchored, instructions):
    torch.manual_seed(0)
    c, p = 3, 2501
    index = None
    if padded:
        index = torch.arange(p, dtype=torch.int32) + 10**6
        index[700:720], index[500:600], index[::7] = torch.arange(20, dtype=torch.int32).flip(0), -1, -1
    double = {"dtype": torch.float64}
    step = dict(
        client_id=torch.tensor([5, 0, 2**31 + 9]), step=torch.tensor([1, 2, 3]), age=torch.tensor([1, 4, 9]),
        noise_std=torch.tensor([1.5, 0.0, 0.3], **double), denominator=torch.tensor([8.0, 4.0, 2.0], **double),
        lr=torch.tensor([0.1, 0.2, 0.3], **double), key=99, stream=2, index=index, weight_decay=0.01, beta1=0.9,
        optimizer=optimizer.split("_")[0].replace("momentum", "sgd"), dp_bias_correction=optimizer == "adamw_dp",
        anchor=torch.randn(c, p) if anchored else None, mu=0.3 if anchored else 0.0,
    )  # fmt: skip
    total, state, m, v = torch.randn(c, p, **double), torch.randn(c, p + 3), torch.randn(c, p), torch.rand(c, p)
    results = []
    for backend in ("cpp", "reference"):
        tensors = [state.clone()[:, :p], m.clone(), v.clone()]
        moments = {} if optimizer == "sgd" else {"exp_avg": tensors[1]}
        if optimizer.startswith("adamw"):
            moments["exp_avg_sq"] = tensors[2]
        with ffk.use_backend(backend):
            ffk.privatize_step_(tensors[0], total, **step, **moments)
        results.append(tensors)
    for actual, expected in zip(*results, strict=True):
        assert (actual - expected).abs().max() <= 2e-7 * expected.abs().max()
    if padded:
        assert torch.equal(results[0][0][:, ::7], state[:, :p:7]), "padding columns of the state changed"
