"""Kernel or torch's products: the table decides, each form is right, and a name that was asked for is obeyed."""

import pytest
import torch
from cases import TOLERANCE, assert_close, make_segments, rows

import ffalora_kernels as ffk
from ffalora_kernels import cpuinfo, dispatch

_cpu = pytest.importorskip("ffalora_kernels._cpu", reason="the C++ extension is not built here")
from ffalora_kernels import cpu, cpu_choices, cpu_products  # noqa: E402

FP32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture
def part(monkeypatch):
    """Sets the part that the table is asked for, and which of its lines there are."""

    def choose(name, lines=()):
        cpu_choices._torch_answers.cache_clear()
        monkeypatch.setattr(cpu_choices, "part", lambda: name)
        monkeypatch.setattr(cpu_choices, "measured", lambda: dict(lines))

    yield choose
    cpu_choices._torch_answers.cache_clear()


@pytest.fixture
def by_torch(monkeypatch):
    """All operations by torch's form, and every segment's gradient too."""
    monkeypatch.setattr(cpu_products, "torch_answers", lambda *_: True)
    monkeypatch.setattr(cpu_products, "WORTH_A_CALL", 1)


def line(shape, ratio):
    return dict.fromkeys(cpu_choices.CLASSES, "1.50") | {shape: ratio}


def test_a_part_without_a_line_takes_torchs_products_for_bfloat16_and_the_kernels_for_float32(part):
    for name in ("amx", "a part of tomorrow"):
        part(name)
        for op in cpu_choices.OPERATIONS:
            assert cpu_choices.torch_answers(op, BF16, 768, 8) and not cpu_choices.torch_answers(op, FP32, 768, 8)
            assert "not measured on this part" in cpu_choices.describe()[f"{op} float32"]


def test_the_kernel_answers_unless_it_was_slower_in_the_class_of_the_shape(part):
    part("here", {("backward", "float32", "here"): line("N2048 R16", "0.96")})
    slower = [(513, 9), (2048, 16)]
    for n, r in [*slower, (512, 16), (2049, 16), (2048, 8), (2048, 17), (10**6, 512), (1, 1)]:
        assert cpu_choices.torch_answers("backward", FP32, n, r) == ((n, r) in slower), (n, r)
    assert "C++, torch's products for N2048 R16 (measured)" == cpu_choices.describe()["backward float32"]


def test_a_part_is_named_after_its_instruction_set(monkeypatch):
    monkeypatch.setattr(cpuinfo, "processor", dict)
    for level, name in enumerate(("baseline", "avx2", "avx512", "avx512_bf16", "amx")):
        monkeypatch.setattr(_cpu, "level", lambda level=level: level)
        assert cpu_choices.part() == name


def test_a_processor_that_halves_wide_vectors_is_a_part_of_its_own(monkeypatch):
    monkeypatch.setattr(_cpu, "level", lambda: 3)
    for family, name in {"25": "zen4", "26": "avx512_bf16"}.items():
        told = {"vendor_id": "AuthenticAMD", "cpu family": family}
        monkeypatch.setattr(cpuinfo, "processor", lambda told=told: told)
        assert cpu_choices.part() == name
    monkeypatch.setattr(cpuinfo, "processor", dict)
    assert cpu_choices.part() == "avx512_bf16", "nobody tells"


def test_with_avx2_alone_a_processor_of_intel_is_a_part_of_its_own(monkeypatch):
    monkeypatch.setattr(cpuinfo, "processor", lambda: {"vendor_id": "GenuineIntel", "cpu family": "6"})
    found = []
    for level in range(5):
        monkeypatch.setattr(_cpu, "level", lambda level=level: level)
        found.append(cpu_choices.part())
    assert found == ["baseline", "avx2_intel", "avx512", "avx512_bf16", "amx"]


def test_every_line_of_the_table_has_a_ratio_for_every_class():
    assert cpu_choices.measured(), "nothing was measured"
    for (op, dtype, part), values in cpu_choices.measured().items():
        assert op in cpu_choices.OPERATIONS and dtype in ("float32", "bfloat16") and part
        assert all(float(values[shape]) > 0 for shape in cpu_choices.CLASSES) and values["device"]


def test_an_operation_goes_where_the_table_says_and_to_the_kernel_that_was_asked_for(part, monkeypatch):
    seen = []
    for module, name in ((cpu, "expand"), (cpu_products, "torch_expand")):
        monkeypatch.setattr(module, name, lambda *_, name=name: seen.append(name))
    y, h, b, segments = (
        torch.zeros(4, 8, dtype=BF16),
        torch.ones(4, 2, dtype=BF16),
        torch.ones(1, 8, 2),
        make_segments((4,)),
    )
    for name, lines, expected in (
        ("amx", {}, "torch_expand"),
        ("amx", {("expand_", "bfloat16", "amx"): line("N512 R8", "0.97")}, "expand"),
    ):
        part(name, lines)
        ffk.expand_(y, h, b, segments, 1.0)
        assert seen.pop() == expected and not seen
    part("amx")
    with ffk.use_backend("cpp"):
        assert dispatch.choose("expand_", "cpu")[0] is not cpu_products.expand


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("lengths,clients", [((5, 40), 1), ((3, 0, 37, 64, 1), 3), ((8, 8, 8), 2), ((), 1)])
def test_torchs_forms_equal_the_float64_reference(dtype, lengths, clients, accumulate, by_torch):
    torch.manual_seed(0)
    segments, n, r, column = make_segments(lengths, clients), 100, 8, 4
    s, m, width = len(segments), segments.n_tokens, n * r
    dy, h, b = rows(m, n, dtype, pad=3), rows(m, r, dtype, pad=1), torch.randn(clients, n, r)
    y, squares = rows(m, n, dtype, pad=2), torch.full((s, 3), float("nan"), dtype=torch.float64)
    arena = torch.full((s, column + width + 7), float("nan"))
    if accumulate:
        arena[:, column : column + width] = torch.randn(s, width)
    wide_arena, wide_y = arena.double(), y.double()
    with ffk.use_backend("reference"):
        ffk.expand_(wide_y, h.double(), b.double(), segments, 0.3)
        wide = dy.double(), h.double(), b.double()
        wide_dh = ffk.backward(*wide, segments, 0.3, wide_arena, column, accumulate=accumulate)
    ffk.expand_(y, h, b, segments, 0.3)
    dh = ffk.backward(dy, h, b, segments, 0.3, arena, column, squares, 1, accumulate)
    g, expected = (t[:, column : column + width] for t in (arena, wide_arena))
    assert_close("y", y, wide_y)
    assert_close("dh", dh, wide_dh)
    assert_close("g", g, expected, TOLERANCE[dtype])
    assert arena[:, :column].isnan().all() and arena[:, column + width :].isnan().all()
    assert torch.allclose(squares[:, 1], g.double().square().sum(1), rtol=1e-12, atol=0)
    assert squares[:, [0, 2]].isnan().all()


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_a_segments_gradient_by_torch_has_the_same_bits_whatever_shares_its_batch(dtype, monkeypatch):
    monkeypatch.setattr(cpu_products, "torch_answers", lambda *_: True)
    monkeypatch.setattr(cpu_products, "WORTH_A_CALL", 40 * 96 * 8)
    torch.manual_seed(0)
    lengths = (31, 0, 50, 1, 64, 40, 39)
    dy, h, b = rows(sum(lengths), 96, dtype, pad=3), rows(sum(lengths), 8, dtype), torch.randn(1, 96, 8)

    def gradients(first, end, own):
        arena, squares = torch.full((len(own), 768), float("nan")), torch.zeros(len(own), 1).double()
        ffk.backward(dy[first:end], h[first:end], b, make_segments(own), 0.5, arena, 0, squares)
        return arena, squares

    together, norms = gradients(0, sum(lengths), lengths)
    at = 0
    for i, length in enumerate(lengths):
        alone, norm = gradients(at, at + length, (length,))
        assert torch.equal(alone[0], together[i]) and torch.equal(norm[0], norms[i]), length
        at += length
