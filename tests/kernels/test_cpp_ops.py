"""The C++ kernels against float64, for every instruction set that this processor can run."""

import pytest
import torch
from cases import CASES, TOLERANCE, assert_close, check_arena, check_backward, make_segments, rows
from emulated_amx import COUNTED, amx

import ffalora_kernels as ffk

_cpu = pytest.importorskip("ffalora_kernels._cpu", reason="the C++ extension is not built here")
LEVELS = {"baseline": 0, "avx2": 1, "avx512": 2, "avx512_bf16": 3}
RAGGED = (3, 0, 37, 64, 1)


@pytest.fixture(params=[*LEVELS, "amx"])
def instructions(request):
    """Runs the test with one instruction set, then returns to the best one; AMX is emulated where it is not there."""
    if request.param == "amx":
        with amx():
            yield "amx"
        return
    best = _cpu.level()
    if not _cpu.set_level(LEVELS[request.param]):
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    _cpu.set_level(best)


@pytest.mark.parametrize("case", CASES)
def test_shared_case_equals_the_float64_reference(case, instructions):
    CASES[case]("cpp")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n,k", [(2, 384), (384, 2), (8, 96), (96, 33), (5, 3), (1, 1), (70, None), (1, None)])
@pytest.mark.parametrize("accumulate", [False, True])
def test_outer_equals_the_float64_reference(n, k, dtype, accumulate, instructions):
    torch.manual_seed(0)
    segments = make_segments((*RAGGED, 300))
    p, q = rows(segments.n_tokens, n, dtype, pad=3), None if k is None else rows(segments.n_tokens, k, dtype, pad=1)
    column, width, s = 5, n * (k or 1), len(segments)
    arena = torch.full((s, column + width + 7), float("nan"))
    if accumulate:
        arena[:, column : column + width] = torch.randn(s, width)
    expected, squares = arena.double(), torch.full((s, 3), float("nan"), dtype=torch.float64)
    with ffk.use_backend("reference"):
        ffk.outer(p.double(), None if q is None else q.double(), segments, 0.3, expected, column, accumulate=accumulate)
    with ffk.use_backend("cpp"):
        ffk.outer(p, q, segments, 0.3, arena, column, squares, 1, accumulate)
    check_arena(arena, expected, column, width, squares, with_squares=True)


def test_bfloat16_is_rounded_to_nearest_even_not_truncated(instructions):
    y = torch.tensor([[1.0, 1.0, -1.0, 2.0**-126, 1.0] * 7], dtype=torch.bfloat16)
    added = torch.tensor([2**-8, 3 * 2**-8, -(2**-8), 2.0**-127, 2.0**-9] * 7)
    expected = (y.float() + added).to(torch.bfloat16)
    with ffk.use_backend("cpp"):
        ffk.expand_(y, torch.ones(1, 1, dtype=torch.bfloat16), added[None, :, None], make_segments((1,)), 1.0)
    assert torch.equal(y, expected)


def test_nan_and_inf_stay_in_their_row(instructions):
    segments = make_segments((4, 4, 4))
    dy, h, b = torch.randn(12, 70), torch.randn(12, 5), torch.randn(1, 70, 5)
    dy[5, 69], dy[6, 3] = float("nan"), float("inf")
    arena, squares = torch.empty(3, 350), torch.empty(3, 1, dtype=torch.float64)
    for dtype in (torch.float32, torch.bfloat16):
        with ffk.use_backend("cpp"):
            dh = ffk.backward(dy.to(dtype), h.to(dtype), b, segments, 1.0, arena, 0, squares)
            y = dy.to(dtype)
            ffk.expand_(y, h.to(dtype), b, segments, 1.0)
        assert dh.isfinite().all(1).tolist() == [i not in (5, 6) for i in range(12)]
        assert squares[:, 0].isfinite().tolist() == [True, False, True]
        assert torch.equal(y.isfinite(), dy.isfinite()), "expand_ lost or spread a NaN"


def test_float16_and_float64_are_taken_and_computed_right():
    segments = make_segments((3, 5))
    for dtype in (torch.float16, torch.float64):
        dy, h, b = torch.randn(8, 9).to(dtype), torch.randn(8, 2).to(dtype), torch.randn(1, 9, 2).to(dtype)
        arena = torch.empty(2, 18, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        with ffk.use_backend("cpp"):
            dh = ffk.backward(dy, h, b, segments, 1.0, arena, 0)
        assert_close("dh", dh, dy.double() @ b[0].double(), TOLERANCE.get(dtype, 1e-12))


@pytest.mark.parametrize("r", [2, 4, 9, 24, 40])
@pytest.mark.parametrize("lengths", [RAGGED, (301, 3)], ids=["one_chunk", "several_chunks"])
def test_bfloat16_backward_of_ranks_between_the_lane_counts_equals_the_reference(r, lengths, instructions):
    for n in (7, 100, 264):
        for accumulate in (False, True):
            check_backward("cpp", lengths=lengths, n=n, r=r, dtype=torch.bfloat16, n_clients=2, accumulate=accumulate)


@pytest.mark.parametrize("r", [3, 6, 12, 16, 40])
@pytest.mark.parametrize("n", [100, 1024], ids=["rows_apart", "rows_whole_pages_apart"])
def test_float32_backward_equals_the_reference_in_every_tile_of_ranks_and_columns(n, r, instructions):
    for lengths in (RAGGED, (133, 3)):
        check_backward("cpp", lengths=lengths, n=n, r=r, n_clients=2, accumulate=n == 100)


def test_subnormal_numbers_of_h_count_and_leave_the_bits_of_other_tokens_alone(instructions):
    torch.manual_seed(0)
    y, h, b = torch.randn(9, 70).bfloat16(), torch.randn(9, 5).bfloat16(), torch.randn(1, 70, 5).bfloat16()
    y[6:8], h[6:8] = 0.0, 3e-39
    expected = (y[6:8].double() + h[6:8].double() @ b[0].double().T).bfloat16()
    alone = torch.cat([expand_one(y[m : m + 1], h[m : m + 1], b) for m in range(9)])
    together = expand_one(y, h, b)
    assert_close("y", together[6:8].double() * 2.0**126, expected.double() * 2.0**126, TOLERANCE[torch.bfloat16])
    assert torch.equal(together, alone)


def expand_one(y, h, b):
    """``y + h bᵀ`` as one segment on the C++ backend; y is left alone."""
    y = y.clone()
    with ffk.use_backend("cpp"):
        ffk.expand_(y, h, b, make_segments((len(y),)), 1.0)
    return y


@pytest.mark.parametrize("threads", [1, 2])
def test_products_by_amx_are_exact_on_small_integers_and_leave_no_tiles_behind(threads, monkeypatch):
    """Sums of integers below 2²⁴ have no rounding, so a number in a wrong place shows."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    segments = make_segments((37, 130, 1), n_clients=2)
    dy, h, b = (torch.randint(-3, 4, shape).bfloat16() for shape in ((168, 100), (168, 40), (2, 100, 40)))
    arena, expected = torch.empty(3, 4000), torch.empty(3, 4000, dtype=torch.float64)
    with amx() as counts, ffk.use_backend("cpp"):
        y = torch.zeros_like(dy)
        ffk.expand_(y, h, b, segments, 2**-6)
        dh = ffk.backward(dy, h, b, segments, 2**-6, arena, 0)
    seen = dict(zip(COUNTED, counts, strict=True))
    with ffk.use_backend("reference"):
        wanted_y = torch.zeros_like(dy).double()
        ffk.expand_(wanted_y, h.double(), b.double(), segments, 2**-6)
        wanted_dh = ffk.backward(dy.double(), h.double(), b.double(), segments, 2**-6, expected, 0)
    assert torch.equal(arena, expected.float())
    assert torch.equal(y, wanted_y.bfloat16()) and torch.equal(dh, wanted_dh.bfloat16())
    assert seen["configured"] == seen["released"]
    assert _cpu.level() == 4 or (seen["multiplied"] > 0 and seen["loaded"] > seen["multiplied"])


def test_a_segments_gradient_by_amx_has_the_same_bits_alone_and_in_company():
    torch.manual_seed(0)
    lengths, n, r = (5, 200, 33, 64), 70, 8
    dy, h, b = torch.randn(302, n).bfloat16(), torch.randn(302, r).bfloat16(), torch.randn(1, n, r).bfloat16()
    together, alone = torch.empty(4, n * r), torch.empty(1, n * r)
    with amx(), ffk.use_backend("cpp"):
        dh = ffk.backward(dy, h, b, make_segments(lengths), 1.0, together, 0)
        start = 0
        for i, length in enumerate(lengths):
            own = slice(start, start + length)
            own_dh = ffk.backward(dy[own], h[own], b, make_segments((length,)), 1.0, alone, 0)
            assert torch.equal(alone[0], together[i]) and torch.equal(own_dh, dh[own])
            start += length
