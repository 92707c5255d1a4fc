"""``linear_cross_entropy``: the definition against autograd, memory, bits, refusals, and no read by the host."""

import sys
from pathlib import Path

import pytest
import torch
from cases import make_segments
from torch.nn import functional

import ffalora_kernels as ffk
from ffalora_kernels import Segments, dispatch

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
LENGTHS = (3, 0, 1, 5, 2)


def inputs(v: int = 13, d: int = 6, dtype: torch.dtype = torch.float64, lengths=LENGTHS):
    """States, head, bias, targets of which every third is ignored and the last segment's all."""
    torch.manual_seed(0)
    m = sum(lengths)
    targets = torch.randint(v, (m,))
    targets[::3] = targets[-2:] = -100
    return torch.randn(m, d).to(dtype), torch.randn(v, d).to(dtype), torch.randn(v).to(dtype), targets


@pytest.mark.parametrize("softcap", [0.0, 1.3])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_definition_equals_autograd_in_float64(reduction: str, biased: bool, softcap: float) -> None:
    x, w, bias, targets = inputs()
    bias = bias if biased else None
    z = functional.linear(x.requires_grad_(), w, bias)
    z = softcap * torch.tanh(z / softcap) if softcap else z
    tokens = functional.cross_entropy(z, targets, reduction="none").split(LENGTHS)
    counts = [int((t != -100).sum()) for t in targets.split(LENGTHS)]
    losses = torch.stack(
        [t.sum() / (max(n, 1) if reduction == "mean" else 1) for t, n in zip(tokens, counts, strict=True)]
    )
    right = [
        int(((z.argmax(1) == targets) & (targets != -100))[rows].sum()) for rows in torch.arange(11).split(LENGTHS)
    ]
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    with ffk.use_backend("reference"):
        found = ffk.linear_cross_entropy(
            x.detach(), w, bias, targets, make_segments(LENGTHS), reduction=reduction, softcap=softcap
        )
    torch.testing.assert_close(found[0], losses.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found[2], gradient, rtol=1e-12, atol=1e-14)
    assert found[1].tolist() == right and found[0][1] == found[0][4] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_token_has_the_same_softmax_bits_whoever_shares_its_chunk(dtype: torch.dtype) -> None:
    """With a head of unit vectors products are exact, so that only the kernel's own arithmetic could differ."""
    x, targets = torch.randn(9, 40).to(dtype), torch.arange(9)
    w = torch.eye(40).to(dtype)
    together = ffk.linear_cross_entropy(x, w, None, targets, make_segments((1,) * 9))
    for m in range(9):
        alone = ffk.linear_cross_entropy(x[m : m + 1], w, None, targets[m : m + 1], make_segments((1,)))
        assert all(torch.equal(a, t[m : m + 1]) for a, t in zip(alone, together, strict=True))


def test_the_logits_of_all_tokens_never_exist_on_a_processor() -> None:
    memory = pytest.importorskip("memory")
    compute, backend = dispatch.choose("linear_cross_entropy", "cpu")
    if backend != "cpp":
        pytest.skip("the C++ extension is not built here")
    x, w, _, targets = inputs(v=20011, d=8, dtype=torch.float32, lengths=(4096,))
    offsets = torch.tensor([0, 4096], dtype=torch.int32)
    with memory.LiveBytes() as bytes_:
        _, _, dx = compute(x, w, None, targets, offsets, -100, True, 0.0, True)
    logits = 4096 * 20011 * 4
    assert dx.shape == x.shape and bytes_.peak < 80 * 2**20 < logits / 3


@pytest.mark.parametrize("d", [2048, 4096])
def test_a_gpu_needs_less_than_300_mib_beside_inputs_and_gradient(d: int, monkeypatch) -> None:
    """Launchers on tensors without data, which the host cannot read either; 8,192 tokens of a vocabulary of 128k."""
    memory, launches = pytest.importorskip("memory"), pytest.importorskip("launches")
    cross_entropy = pytest.importorskip("ffalora_kernels.triton.cross_entropy")
    products = []
    monkeypatch.setattr(cross_entropy, "product_", lambda out, a, b: products.append((*a.shape, *b.shape, out.shape)))
    half = {"dtype": torch.bfloat16, "device": "meta"}
    x, w = torch.empty(8192, d, **half), torch.empty(128256, d, **half)
    targets, offsets = (torch.empty(n, dtype=t, device="meta") for n, t in ((8192, torch.int64), (17, torch.int32)))
    with launches.recorded("", "", 0, "sm_90") as recorded, memory.LiveBytes() as bytes_:
        views = [t[:] for t in (x, w, targets, offsets)]  # the inputs count from here on
        before = bytes_.live
        losses, right, dx = cross_entropy.linear_cross_entropy(x, w, None, targets, offsets, -100, True, 0.0, True)
    assert losses.shape == right.shape == (16,) and dx.shape == (8192, d) and len(views) == 4
    assert 200 * 2**20 < bytes_.peak - before - dx.nbytes <= 300 * 2**20
    assert len(recorded) == 2 + 16 and len(products) == 2 * 16


def test_the_operation_is_traced_without_data() -> None:
    x, w, bias, targets = (t.to("meta") for t in inputs(dtype=torch.float32))
    segments = make_segments(LENGTHS)
    on_meta = Segments(segments.offsets.to("meta"), segments.client.to("meta"), 1, segments.longest, segments.n_tokens)
    losses, right, dx = ffk.linear_cross_entropy(x, w, bias, targets, on_meta)
    assert (losses.shape, right.shape, dx.shape) == ((5,), (5,), x.shape) and losses.dtype == torch.float32
    assert ffk.linear_cross_entropy(x, w, bias, targets, on_meta, gradient=False)[2].shape == (0, 6)


@pytest.mark.parametrize(
    "change,error,message",
    [
        ({"reduction": "none"}, ValueError, "reduction must be one of"),
        ({"softcap": -1.0}, ValueError, "softcap must be 0 .none. or positive and finite, got -1"),
        ({"softcap": float("inf")}, ValueError, "softcap must be 0 .none. or positive and finite, got inf"),
        ({"softcap": float("nan")}, ValueError, "softcap"),
        ({"w": torch.randn(13, 5)}, ValueError, r"w must be \[V,D\] with V > 0 and D = 6"),
        ({"w": torch.randn(0, 6)}, ValueError, "V > 0"),
        ({"w": torch.randn(13, 6).half()}, TypeError, "w is torch.float16 but x is torch.float32"),
        ({"bias": torch.randn(12)}, ValueError, "bias must be torch.float32 of shape"),
        ({"targets": torch.zeros(11, dtype=torch.int32)}, ValueError, "targets must be torch.int64"),
        ({"segments": make_segments((3,))}, ValueError, "x has 11 rows but the segments cover 3 tokens"),
        ({"x": torch.randn(11, 6, requires_grad=True)}, RuntimeError, "not differentiable"),
        ({"w": torch.randn(13, 6, requires_grad=True)}, RuntimeError, "not differentiable"),
        ({"segments": Segments.from_lengths(LENGTHS, device="meta")}, ValueError, "on one device"),
        ({"label_smoothing": 0.1}, TypeError, "label_smoothing"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_refused_by_name(change: dict, error: type, message: str) -> None:
    x, w, bias, targets = inputs(dtype=torch.float32)
    given = {"x": x, "w": w, "bias": bias, "targets": targets, "segments": make_segments(LENGTHS)} | change
    with pytest.raises(error, match=message):
        ffk.linear_cross_entropy(**given)
