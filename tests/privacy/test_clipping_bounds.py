"""No clipped row exceeds C, and no neighbour moves a computed sum by more than C(1+η): measured exactly, on every CPU
backend.
"""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ffalora_kernels
from ffalora.privacy.clipping import per_layer_thresholds, roundoff_bound, sensitivity
from ffalora_kernels import Segments, clip_reduce_, reference

BACKENDS = [name for name, reason in ffalora_kernels.explain().items() if reason == "available" and name != "triton"]
#: Zero, subnormal, 1e-30 … 1e30 and the largest float32: as exponents of ten of a whole row or of single elements.
EXPONENTS = st.integers(-45, 38)


@st.composite
def arenas(draw, bad: bool = False, max_rows: int = 8):
    """A float32 arena ``[S,P]`` with rows of any magnitude, mixed magnitudes in a row, duplicates, zeros; if asked NaN
    and Inf.
    """
    s, p = draw(st.integers(0, max_rows)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = rng.standard_normal((s, p))
    for row in rows:
        kind = draw(st.sampled_from(["row", "mixed", "zero", "ones"]))
        if kind == "row":
            row *= 10.0 ** draw(EXPONENTS)
        elif kind == "mixed":
            row *= 10.0 ** rng.integers(-45, 39, p)
        elif kind == "zero":
            row *= 0.0
        else:
            row[:] = np.sign(row) * 10.0 ** draw(EXPONENTS)
    arena = np.clip(rows, -3.4028235e38, 3.4028235e38).astype(np.float32)
    if s > 1 and draw(st.booleans()):
        arena[-1] = arena[0]
    if bad and s:
        for value in draw(st.lists(st.sampled_from([math.nan, math.inf, -math.inf]), max_size=3)):
            arena[rng.integers(s), rng.integers(p)] = value
    return torch.from_numpy(arena)


norms_of_c = st.integers(-6, 6).map(lambda e: 10.0**e) | st.floats(0.1, 10.0)


def run_clip(arena, limits, mode="flat", groups=None, clip=clip_reduce_):
    s, p = arena.shape
    total = torch.zeros(1, p, dtype=torch.float64)
    columns = torch.tensor([0, p] if groups is None else groups, dtype=torch.int32)
    limits = torch.as_tensor(limits, dtype=torch.float64).reshape(1, -1)
    factors, norms = clip(total, arena, torch.zeros(s, dtype=torch.int32), limits, columns, mode=mode)
    return total[0], factors, norms


def exact_square(values) -> Fraction:
    return sum((Fraction(v) ** 2 for v in values), Fraction(0))


def clipped_row(row, factors, columns) -> list[Fraction]:
    """The row times its factors, in exact arithmetic."""
    return [
        Fraction(float(factors[k])) * Fraction(float(x))
        for k in range(len(factors))
        for x in row[columns[k] : columns[k + 1]]
    ]


def exceeds(arena, factors, columns, limit) -> bool:
    """Whether a finite row, clipped, is longer than C: by not even one part in 10³⁰."""
    finite = arena.isfinite().all(1)
    return any(
        exact_square(clipped_row(arena[i], factors[i], columns)) > Fraction(limit) ** 2
        for i in range(len(arena))
        if bool(finite[i])
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["flat", "automatic"])
@given(arenas(bad=True), norms_of_c)
@settings(max_examples=300)
def test_clipped_row_is_no_longer_than_c_and_no_finite_row_is_dropped(backend, mode, arena, limit):
    with ffalora_kernels.use_backend(backend):
        total, factors, _ = run_clip(arena, [limit], mode)
    finite = arena.isfinite().all(1)
    assert not exceeds(arena, factors, [0, arena.shape[1]], limit)
    assert bool((factors[finite] > 0).all()) and bool((factors[~finite] == 0).all())
    assert bool(total.isfinite().all())
    measured = (factors[finite] * arena[finite].double()).square().sum(1).sqrt()
    assert bool((measured <= limit).all())


@pytest.mark.parametrize("backend", BACKENDS)
@given(arenas(bad=True), norms_of_c, st.integers(1, 5), st.booleans(), st.integers(0, 2**16))
@settings(max_examples=200)
def test_per_layer_clipping_keeps_a_whole_row_within_c(backend, arena, limit, groups, by_size, seed):
    p = arena.shape[1]
    inner = np.sort(np.random.default_rng(seed).integers(0, p + 1, groups - 1)).tolist()
    columns = [0, *inner, p]
    weights = [max(1, hi - lo) if by_size else 1.0 for lo, hi in itertools.pairwise(columns)]
    thresholds = per_layer_thresholds(limit, weights)
    with ffalora_kernels.use_backend(backend):
        total, factors, _ = run_clip(arena, thresholds, groups=columns)
    assert not exceeds(arena, factors, columns, limit)
    assert bool((factors[~arena.isfinite().all(1)] == 0).all()) and bool(total.isfinite().all())


def neighbours_differ(arena, limit, clip=clip_reduce_, mode="flat"):
    """Distance of the sums with and without the first row, in units of C: by exact arithmetic, and as computed."""
    with_row, factors, _ = run_clip(arena, [limit], mode, clip=clip)
    without, factors_without, _ = run_clip(arena[1:].contiguous(), [limit], mode, clip=clip)
    assert torch.equal(factors[1:], factors_without), "a row's factor depends on what shares its batch"
    exact = (
        exact_square(clipped_row(arena[0], factors[0], [0, arena.shape[1]])) if bool(factors[0, 0] > 0) else Fraction(0)
    )
    computed = sum(
        (Fraction(float(a)) - Fraction(float(b))) ** 2 for a, b in zip(with_row.tolist(), without.tolist(), strict=True)
    )
    return exact / Fraction(limit) ** 2, computed / Fraction(limit) ** 2


@pytest.mark.parametrize("backend", BACKENDS)
@given(arenas(bad=True, max_rows=12).filter(len), norms_of_c, st.sampled_from(["flat", "automatic"]))
@settings(max_examples=300)
def test_adding_a_row_moves_the_sum_by_the_sensitivity_at_most(backend, arena, limit, mode):
    with ffalora_kernels.use_backend(backend):
        exact, computed = neighbours_differ(arena, limit, mode=mode)
    assert exact <= 1
    assert computed <= Fraction(1.0 + roundoff_bound(len(arena))) ** 2


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from([1, 2, 3, 5, 8, 17, 64]),
    st.lists(st.integers(0, 5), min_size=1, max_size=5),
    st.integers(-30, 30),
    st.integers(-8, 8),
    norms_of_c,
    st.integers(0, 2**32),
)
@settings(max_examples=200)
def test_gradients_of_a_layer_stay_within_c_in_every_dtype_rank_and_magnitude(
    backend, dtype, rank, lengths, exponent, other_exponent, limit, seed
):
    segments = Segments.from_lengths(lengths)
    generator = torch.Generator().manual_seed(seed)
    dy = (torch.randn(segments.n_tokens, 6, generator=generator, dtype=torch.float64) * 10.0**exponent).to(dtype)
    h = (torch.randn(segments.n_tokens, rank, generator=generator, dtype=torch.float64) * 10.0**other_exponent).to(
        dtype
    )
    arena = torch.full((len(lengths), 6 * rank), math.nan)
    squares = torch.full((len(lengths), 1), math.nan, dtype=torch.float64)
    with ffalora_kernels.use_backend(backend), torch.no_grad():
        ffalora_kernels.backward(dy, h, torch.zeros(1, 6, rank), segments, 2.0, arena, 0, squares)
        total = torch.zeros(1, 6 * rank, dtype=torch.float64)
        factors, _ = clip_reduce_(
            total,
            arena,
            segments.client,
            torch.tensor([[limit]], dtype=torch.float64),
            torch.tensor([0, 6 * rank], dtype=torch.int32),
            squares=squares,
        )
    finite = arena.isfinite().all(1)
    assert not exceeds(arena, factors, [0, 6 * rank], limit)
    assert bool((factors[finite] > 0).all()) and bool((factors[~finite] == 0).all()) and bool(total.isfinite().all())


def test_round_off_bound_covers_real_round_off():
    """Sums of up to 3000 rows, against exact ones: the error stays below half of η·C, the share of one neighbour."""
    rng = np.random.default_rng(0)
    for rows in (1, 10, 300, 3000):
        arena = torch.from_numpy(
            (rng.standard_normal((rows, 5)) * 10.0 ** rng.integers(-3, 4, (rows, 1))).astype(np.float32)
        )
        total, factors, _ = run_clip(arena, [1.0])
        exact = [
            sum(Fraction(float(f)) * Fraction(float(x)) for f, x in zip(factors[:, 0], arena[:, j], strict=True))
            for j in range(5)
        ]
        error = math.sqrt(exact_square(Fraction(float(t)) - e for t, e in zip(total, exact, strict=True)))
        assert error <= roundoff_bound(rows) / 2


def test_round_off_bound_is_what_the_docs_say():
    assert roundoff_bound(0) == 0.0
    assert roundoff_bound(10_000) == pytest.approx(2.2e-8, rel=0.02)
    assert roundoff_bound(400_000) == pytest.approx(3.6e-5, rel=0.02)
    assert sensitivity(2.0, 10_000) == 2.0 * (1.0 + roundoff_bound(10_000))
    with pytest.raises(ValueError, match="rows=10000000"):
        roundoff_bound(10_000_000, unit_roundoff=2.0**-24)
    with pytest.raises(ValueError, match="rows"):
        roundoff_bound(-1)


# ---- the checks above must see what they claim to see
# ------------------------------------------------------------------


def clip_with(monkeypatch, margin=None, square_dtype=None, sum_dtype=None):
    """The reference with one guard broken."""
    if margin is not None:
        monkeypatch.setattr(reference, "NORM_MARGIN", margin)

    def clip(total, arena, client, limits, columns, mode):
        squares = None
        if square_dtype is not None:
            squares = arena.to(square_dtype).square().sum(1, keepdim=True).double()
        target = total if sum_dtype is None else total.to(sum_dtype)
        answer = reference.clip_reduce_ref(target, arena, squares, client, limits, columns, mode, 0.01)
        total.copy_(target)
        return answer

    return clip


def broken_bounds(clip, limit=1.0, rows=40, tries=150) -> set[str]:
    rng = np.random.default_rng(0)
    broken = set()
    for _ in range(tries):
        scale = 10.0 ** rng.integers(-28, 28, (rows, 1))
        arena = torch.from_numpy((rng.standard_normal(9) + rng.standard_normal((rows, 9))) * scale).float()
        _, factors, _ = run_clip(arena, [limit], clip=clip)
        if exceeds(arena, factors, [0, 9], limit):
            broken.add("norm")
        if not bool((factors > 0).all()):
            broken.add("dropped")
        if neighbours_differ(arena, limit, clip=clip)[1] > Fraction(1.0 + roundoff_bound(rows)) ** 2:
            broken.add("sum")
    return broken


@pytest.mark.long
def test_bounds_break_as_soon_as_what_keeps_them_is_taken_away(monkeypatch):
    assert broken_bounds(clip_with(monkeypatch)) == set()
    assert "norm" in broken_bounds(clip_with(monkeypatch, margin=1.0))
    monkeypatch.undo()
    assert "dropped" in broken_bounds(clip_with(monkeypatch, square_dtype=torch.float32))
    assert "norm" in broken_bounds(clip_with(monkeypatch, square_dtype=torch.float32), limit=1e-24)
    many = {"rows": 1000, "tries": 10}
    assert broken_bounds(clip_with(monkeypatch), **many) == set()
    assert broken_bounds(clip_with(monkeypatch, sum_dtype=torch.float32), **many) == {"sum"}
