"""A segment's gradient from C++ has the same bits whatever shares its batch and however many threads work."""

import pytest
import torch
from cases import make_segments

import ffalora_kernels as ffk

pytest.importorskip("ffalora_kernels._cpu", reason="the C++ extension is not built here")


@pytest.fixture(autouse=True)
def threads_restored():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def gradients(dy, h, b, lengths, threads):
    """dh, arena and squares of one backward call on the C++ backend."""
    torch.set_num_threads(threads)
    segments = make_segments(lengths)
    arena = torch.full((len(lengths), dy.shape[1] * h.shape[1]), float("nan"))
    squares = torch.full((len(lengths), 1), float("nan"), dtype=torch.float64)
    with ffk.use_backend("cpp"):
        dh = ffk.backward(dy, h, b, segments, 0.5, arena, 0, squares)
    return dh, arena, squares


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n,r", [(384, 8), (300, 5), (1000, 16), (7, 1), (200, 24)])
def test_gradient_bits_depend_on_neither_batch_nor_threads(dtype, n, r):
    torch.manual_seed(0)
    lengths = (31, 0, 700, 1, 64, 2, 33, 8, 5, 6)
    m = sum(lengths)
    dy, h, b = torch.randn(m, n).to(dtype), torch.randn(m, r).to(dtype), torch.randn(1, n, r)
    together = gradients(dy, h, b, lengths, threads=1)
    for threads in (2, 3):
        for one, other in zip(together, gradients(dy, h, b, lengths, threads), strict=True):
            assert torch.equal(one, other), f"bits change with {threads} threads"
    at = 0
    for i, length in enumerate(lengths):
        alone = gradients(dy[at : at + length], h[at : at + length], b, (length,), threads=2)
        assert torch.equal(alone[1][0], together[1][i]), f"g of segment {i} depends on its batch"
        assert torch.equal(alone[2][0], together[2][i])
        assert torch.equal(alone[0], together[0][at : at + length])
        at += length


def test_clipped_sum_and_step_bits_are_the_same_on_any_number_of_threads():
    torch.manual_seed(0)
    arena, client = torch.randn(37, 9001), torch.randint(2, (37,), dtype=torch.int32)
    limits, bounds = torch.full((2, 1), 9.0, dtype=torch.float64), torch.tensor([0, 9001], dtype=torch.int32)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        total, state = torch.zeros(2, 9001, dtype=torch.float64), torch.zeros(2, 9001)
        ones = torch.ones(2, dtype=torch.float64)
        with ffk.use_backend("cpp"):
            ffk.clip_reduce_(total, arena, client, limits, bounds)
            ffk.privatize_step_(
                state, total, client_id=torch.tensor([3, 4]), step=torch.tensor([0, 1]), noise_std=ones,
                denominator=ones, lr=ones, key=5,
            )  # fmt: skip
        results.append((total, state))
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0]) and torch.equal(results[0][1], other[1])
