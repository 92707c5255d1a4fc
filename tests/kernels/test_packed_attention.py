"""Attention inside segments: the definition against torch's own, the kernel against the definition in float64."""

import pytest
import torch
from cases import TOLERANCE, assert_close, make_segments

import ffalora_kernels as ffk
from ffalora_kernels import dispatch
from ffalora_kernels.attention import packed_attention, packed_attention_gradient

FP32, BF16 = torch.float32, torch.bfloat16
RAGGED = (3, 0, 37, 64, 1, 70, 130)
LEVELS = {"baseline": 0, "avx2": 1, "avx512": 2, "avx512_bf16": 3}
#: Heads of queries, of keys and values, width of a head; causal; heads before tokens in memory.
SHAPES = [
    (4, 4, 32, False, True),
    (4, 2, 8, True, False),
    (6, 1, 20, False, False),
    (1, 1, 1, True, True),
    (2, 2, 64, True, True),
]


def drawn(lengths, heads, kv_heads, width, dtype, transposed=False):
    torch.manual_seed(0)
    m = sum(lengths)
    sizes = [(m, heads, width), (m, kv_heads, width), (m, kv_heads, width), (m, heads, width)]
    made = [torch.randn(size).to(dtype) for size in sizes]
    return [t.transpose(0, 1).contiguous().transpose(0, 1) for t in made] if transposed else made


@pytest.mark.parametrize("heads,kv_heads,width,causal,transposed", SHAPES)
def test_definition_equals_torchs_attention_and_autograd_sample_by_sample(heads, kv_heads, width, causal, transposed):
    lengths = (5, 0, 9, 1)
    q, k, v, dout = (t.double() for t in drawn(lengths, heads, kv_heads, width, FP32, transposed))
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    expected = []
    for one in zip(*(t.split(lengths) for t in leaves), strict=True):
        query, key, value = (t.transpose(0, 1)[None] for t in one)
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=causal, scale=0.3, enable_gqa=True
        )
        expected.append(out[0].transpose(0, 1))
    expected = torch.cat(expected)
    gradients = torch.autograd.grad(expected, leaves, dout)
    with ffk.use_backend("reference"), torch.no_grad():
        segments = make_segments(lengths)
        out, normalisers = packed_attention(q, k, v, segments, 0.3, causal)
        found = packed_attention_gradient(dout, q, k, v, normalisers, segments, 0.3, causal)
    torch.testing.assert_close(out, expected.detach(), rtol=1e-10, atol=1e-12)
    for name, one, other in zip("qkv", found, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11, msg=name)


@pytest.fixture(params=LEVELS)
def instructions(request):
    cpu = pytest.importorskip("ffalora_kernels._cpu", reason="the C++ extension is not built here")
    best = cpu.level()
    if not cpu.set_level(LEVELS[request.param]):
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    cpu.set_level(best)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("heads,kv_heads,width,causal,transposed", SHAPES)
def test_kernel_equals_the_definition_in_float64(heads, kv_heads, width, causal, dtype, transposed, instructions):
    q, k, v, dout = drawn(RAGGED, heads, kv_heads, width, dtype, transposed)
    segments = make_segments(RAGGED)
    with ffk.use_backend("reference"):
        wide = [t.double() for t in (q, k, v)]
        out, normalisers = packed_attention(*wide, segments, 0.3, causal)
        gradients = packed_attention_gradient(dout.double(), *wide, normalisers, segments, 0.3, causal)
    with ffk.use_backend("cpp"):
        found, sums = packed_attention(q, k, v, segments, 0.3, causal)
        each = packed_attention_gradient(dout, q, k, v, sums, segments, 0.3, causal)
    assert_close("out", found, out)
    assert_close("normalisers", sums, normalisers, 1e-6)
    for name, one, expected in zip(("dq", "dk", "dv"), each, gradients, strict=True):
        if width > 1 or name == "dv":
            assert_close(name, one, expected, 3 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_a_samples_bits_depend_on_neither_its_batch_nor_the_threads(dtype):
    pytest.importorskip("ffalora_kernels._cpu", reason="the C++ extension is not built here")
    q, k, v, dout = drawn(RAGGED, 4, 2, 24, dtype)

    def computed(rows, lengths, threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        segments, own = make_segments(lengths), [t[rows] for t in (q, k, v)]
        out, normalisers = packed_attention(*own, segments, 0.3)
        found = out, *packed_attention_gradient(dout[rows], *own, normalisers, segments, 0.3)
        torch.set_num_threads(before)
        return found

    together = computed(slice(None), RAGGED, 1)
    assert all(map(torch.equal, together, computed(slice(None), RAGGED, 3)))
    at = 0
    for length in RAGGED:
        rows = slice(at, at + length)
        assert all(map(torch.equal, (t[rows] for t in together), computed(rows, (length,), 1))), length
        at += length


def test_scores_of_any_size_give_finite_weights_and_a_nan_stays_in_its_sample():
    q, k, v, dout = drawn((4, 5), 2, 2, 8, FP32)
    segments = make_segments((4, 5))
    out, normalisers = packed_attention(1e4 * q, 1e4 * k, v, segments, 1.0)
    assert out.isfinite().all() and normalisers.isfinite().all()
    q[5, 0, 0] = float("nan")
    out, normalisers = packed_attention(q, k, v, segments, 1.0)
    found = packed_attention_gradient(dout, q, k, v, normalisers, segments, 1.0)
    assert all(t[:4].isfinite().all() and not t[4:].isfinite().all() for t in (out, *found))


def test_what_does_not_fit_is_refused_by_name():
    q, k, v, _ = drawn((4,), 4, 2, 8, FP32)
    segments = make_segments((4,))
    with pytest.raises(ValueError, match="divisor of its 4 heads"):
        packed_attention(q, k[:, :1].expand(4, 3, 8), v[:, :1].expand(4, 3, 8), segments, 1.0)
    with pytest.raises(TypeError, match="v must be"):
        packed_attention(q, k, v.double(), segments, 1.0)
    with pytest.raises(ValueError, match="q has 3 rows but the segments cover 4"):
        packed_attention(q[:3], k, v, segments, 1.0)
    with pytest.raises(ValueError, match="numbers of a row of k must be adjacent"):
        packed_attention(q, k.transpose(1, 2).contiguous().transpose(1, 2), v, segments, 1.0)
    with pytest.raises(RuntimeError, match="not differentiable"):
        packed_attention(q.clone().requires_grad_(), k, v, segments, 1.0)


def test_both_operations_are_known_to_every_processor_backend():
    for op in ("packed_attention", "packed_attention_gradient"):
        assert dispatch.choose(op, "cuda")[1] == "reference" or dispatch.load("triton")[0] is not None
        with ffk.use_backend("reference"):
            assert dispatch.choose(op, "cpu")[1] == "reference"
