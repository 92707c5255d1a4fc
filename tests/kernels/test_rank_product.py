"""``h = x aᵀ``: right on every instruction set, the same bits whatever shares the batch, torch's product elsewhere."""

import pytest
import torch
from cases import TOLERANCE, assert_close, rows
from test_cpp_ops import instructions  # noqa: F401

import ffalora_kernels as ffk

pytest.importorskip("ffalora_kernels._cpu", reason="the C++ extension is not built here")
from ffalora_kernels import products

FP32, BF16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("r", [1, 5, 8, 16, 24, 40])
def test_the_product_equals_float64s(r, dtype, instructions):  # noqa: F811
    torch.manual_seed(0)
    for tokens, k in ((0, 5), (1, 1), (67, 100), (133, 1100)):
        x, a = rows(tokens, k, dtype, pad=3), rows(r, k, dtype, pad=1)
        with ffk.use_backend("cpp"):
            h = ffk.rank_product(x, a)
        assert h.dtype == dtype and h.shape == (tokens, r) and h.is_contiguous()
        assert_close("h", h, x.double() @ a.double().T, TOLERANCE[dtype])


def test_no_columns_give_zeros():
    with ffk.use_backend("cpp"):
        assert torch.equal(ffk.rank_product(torch.ones(3, 0), torch.ones(2, 0)), torch.zeros(3, 2))


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_a_tokens_numbers_have_the_same_bits_alone_and_on_any_number_of_threads(dtype):
    torch.manual_seed(0)
    x, a, before = torch.randn(130, 700).to(dtype), torch.randn(12, 700).to(dtype), torch.get_num_threads()
    try:
        with ffk.use_backend("cpp"):
            together = ffk.rank_product(x, a)
            for threads, first, end in ((1, 0, 130), (3, 0, 130), (2, 77, 78), (2, 60, 99)):
                torch.set_num_threads(threads)
                assert torch.equal(ffk.rank_product(x[first:end], a), together[first:end])
    finally:
        torch.set_num_threads(before)


def test_columns_apart_and_other_number_formats_are_computed_right():
    torch.manual_seed(0)
    for x, a in (
        (torch.randn(5, 9).T, torch.randn(5, 2).T),
        (torch.randn(9, 5).half(), torch.randn(2, 5).half()),
        (torch.randn(9, 5).double(), torch.randn(2, 5).double()),
    ):
        assert_close("h", ffk.rank_product(x, a), x.double() @ a.double().T, TOLERANCE.get(x.dtype, 1e-12))


def test_only_processors_and_their_number_formats_leave_torchs_product(monkeypatch):
    asked = []
    monkeypatch.setattr(products, "_rank_product", lambda x, a: asked.append(x.dtype) or x @ a.T)
    for dtype in (FP32, BF16, torch.float16, torch.float64):
        ffk.rank_product(torch.ones(3, 4, dtype=dtype), torch.ones(2, 4, dtype=dtype))
    ffk.rank_product(torch.ones(3, 4, device="meta"), torch.ones(2, 4, device="meta"))
    assert asked == [FP32, BF16]
