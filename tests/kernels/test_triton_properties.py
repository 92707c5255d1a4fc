"""What must hold between runs of the Triton kernels: equal bits, no hidden atomics, clear refusals."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from cases import BF16, SCALE, rows
from emulator.driver import stub_driver
from emulator.launch import emulated

import ffalora_kernels as ffk
from ffalora_kernels import Segments, dispatch, gpu_products
from ffalora_kernels.reference import gaussian_ref, philox_ref
from ffalora_kernels.triton import IMPLEMENTATIONS, configs, optim

N, R = 300, 8


def _gradients(dy: torch.Tensor, h: torch.Tensor, b: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, ...]:
    segments = Segments.from_lengths(lengths)
    arena, squares = torch.full((len(lengths), N * R), float("nan")), torch.zeros(len(lengths), 1, dtype=torch.float64)
    with ffk.use_backend("triton"):
        dh = ffk.backward(dy, h, b, segments, SCALE, arena, 0, squares)
    return arena, squares, dh


@pytest.mark.parametrize("cap", [80, 90])
def test_a_sample_has_the_same_bits_alone_among_others_and_packed_elsewhere(cap: int) -> None:
    torch.manual_seed(0)
    dy, h, b = rows(37, N, BF16), rows(37, R, BF16), torch.randn(1, N, R).to(BF16)
    before, after = (rows(100, N, BF16), rows(100, R, BF16)), (rows(9, N, BF16), rows(9, R, BF16))
    packed = [torch.cat(three) for three in zip(before, (dy, h), after, strict=True)]
    with emulated(cap):
        alone = _gradients(dy, h, b, [37])
        among = _gradients(*packed, b, [61, 39, 37, 0, 9])
    assert torch.equal(alone[0][0], among[0][2]), "g depends on what shares the batch"
    assert torch.equal(alone[1][0], among[1][2]), "its norm depends on what shares the batch"
    assert torch.equal(alone[2], among[2][100:137]), "dh depends on what shares the batch"


@pytest.mark.long
@pytest.mark.parametrize("cap", [80, 90])
def test_splitting_a_long_segment_over_programs_does_not_change_a_bit(cap: int, monkeypatch) -> None:
    torch.manual_seed(0)
    dy, h, b = rows(650, N, BF16), rows(650, R, BF16), torch.randn(1, N, R).to(BF16)
    with emulated(cap) as reports:
        split = _gradients(dy, h, b, [600, 50])
        assert any(name == "_join_chunks_kernel" for name, _ in reports)
        monkeypatch.setattr(configs, "walk_chunks", lambda arch, programs, n_chunks: "walk")
        walked = _gradients(dy, h, b, [600, 50])
    assert torch.equal(split[0], walked[0]) and torch.equal(split[2], walked[2])


def test_deterministic_backward_uses_no_atomics() -> None:
    with emulated(90) as reports:
        _gradients(rows(32, N, BF16), rows(32, R, BF16), torch.zeros(1, N, R, dtype=BF16), [32])
    assert all("atomics" not in counts for _, counts in reports)


@triton.jit
def _noise_kernel(words, normals, client_id, step, key_low, key_high, stream, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    w0, w1, w2, w3 = optim._philox_words(i, tl.load(client_id), tl.load(step), stream, key_low, key_high)
    tl.store(words + i, w0.to(tl.int64))
    tl.store(words + BLOCK + i, w1.to(tl.int64))
    tl.store(words + 2 * BLOCK + i, w2.to(tl.int64))
    tl.store(words + 3 * BLOCK + i, w3.to(tl.int64))
    z = optim._gaussian(i, tl.load(client_id), tl.load(step), stream, key_low, key_high)
    tl.store(normals + i, z)


@pytest.mark.parametrize("key", [0, 7, 2**63 + 2**31 + 5, 2**64 - 1])
def test_noise_has_the_bits_of_the_reference_and_its_normals_to_the_last_places(key: int) -> None:
    client_id, step, stream, count = 2**33 + 12345, 987, 3, 1024
    words, normals = torch.zeros(4, count, dtype=torch.int64), torch.zeros(count, dtype=torch.float64)
    halves = optim._signed(key), optim._signed(key >> 32)
    with emulated(90):
        _noise_kernel[(1,)](
            words, normals, torch.tensor([client_id]), torch.tensor([step]), *halves, stream, BLOCK=count
        )
    index = torch.arange(count)
    expected = philox_ref((index // 4, *(torch.full_like(index, v) for v in (client_id, step, stream))), key)
    assert all(torch.equal(ours & 0xFFFFFFFF, theirs) for ours, theirs in zip(words, expected, strict=True))
    z = gaussian_ref(key, client_id, step, stream, index)
    torch.testing.assert_close(normals, z, rtol=1e-13, atol=1e-14)


@triton.jit
def _sine_cosine_kernel(turns, sines, cosines, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    s, c = optim._sine_cosine(tl.load(turns + i))
    tl.store(sines + i, s)
    tl.store(cosines + i, c)


def test_sine_and_cosine_hold_on_the_whole_turn_ends_and_quarters_included() -> None:
    turns = torch.linspace(0, 1, 2041, dtype=torch.float64)
    turns = torch.cat([turns, torch.tensor([0.0, 0.125, 0.25, 0.5, 0.75, 0.875, 1.0], dtype=torch.float64)])
    sines, cosines = torch.zeros_like(turns), torch.zeros_like(turns)
    with emulated(90):
        _sine_cosine_kernel[(1,)](turns, sines, cosines, BLOCK=len(turns))
    angle = 2 * torch.pi * turns
    torch.testing.assert_close(sines, angle.sin(), rtol=0, atol=1e-15)
    torch.testing.assert_close(cosines, angle.cos(), rtol=0, atol=1e-15)


def test_a_cpu_tensor_is_refused_with_the_remedy() -> None:
    y, h, b = torch.zeros(4, 8), torch.zeros(4, 2), torch.zeros(1, 8, 2)
    with ffk.use_backend("triton"), pytest.raises(RuntimeError, match=r"serves CUDA tensors.*TRITON_INTERPRET"):
        ffk.expand_(y, h, b, Segments.uniform(1, 4), 1.0)


def test_rows_too_far_apart_for_32_bit_offsets_in_a_tile_are_refused() -> None:
    y = torch.empty(2 * 2**24, device="meta").as_strided((2, 8), (2**24, 1))
    h, b = torch.empty(2, 2, device="meta"), torch.empty(1, 8, 2, device="meta")
    index = torch.empty(1, dtype=torch.int32, device="meta")
    refused = pytest.raises(ValueError, match="rows of y are 16777216 elements apart")
    with stub_driver("sm_90", pytest.fail, "meta"), refused:
        IMPLEMENTATIONS["expand_"](y, h, b, index, index, 1.0, 2)


def test_float64_activations_are_refused_by_name() -> None:
    y, h, b = torch.zeros(4, 8).double(), torch.zeros(4, 2).double(), torch.zeros(1, 8, 2).double()
    with emulated(90), ffk.use_backend("triton"), pytest.raises(TypeError, match=r"float64.*reference"):
        ffk.expand_(y, h, b, Segments.uniform(1, 4), 1.0)


def test_a_rank_beyond_the_kernels_is_refused_by_name_and_served_where_the_choice_is_open() -> None:
    y, h, b = torch.zeros(4, 8), torch.zeros(4, 300), torch.zeros(1, 8, 300)
    with (
        emulated(90),
        ffk.use_backend("triton"),
        pytest.raises(ValueError, match=r"rank=300: .* up to rank 256; .*'ref"),
    ):
        ffk.expand_(y, h, b, Segments.uniform(1, 4), 1.0)
    assert dispatch.choose("backward", "cuda") == (gpu_products.backward, "triton")
