"""One test body for every backend: each case draws inputs, runs an operation and compares with the float64 reference.

A case is a function of the backend's name and a device; it raises AssertionError. ``CASES`` holds them by name, so that
a test file of a backend is a loop over names. Output buffers are filled with NaN first: a number nobody wrote is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

import ffalora_kernels as ffk
from ffalora_kernels import Segments

#: RMS(error)/RMS(reference) against float64, by the dtype of the tensor that is compared.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
SCALE = 0.5


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """RMS(actual - expected)/RMS(expected), in float64; 0 for empty tensors; NaN where ``actual`` has one."""
    if expected.numel() == 0:
        return 0.0
    a, e = actual.detach().cpu().double(), expected.detach().cpu().double()
    return float((a - e).square().mean().sqrt() / e.square().mean().sqrt().clamp(min=1e-300))


def assert_close(name: str, actual: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    """Fails unless the relative error is within the tolerance of the tensor's dtype."""
    limit = TOLERANCE[actual.dtype] if tolerance is None else tolerance
    error = relative_error(actual, expected)
    assert error <= limit, f"{name}: relative error {error:.2e} exceeds {limit:.0e}"


def rows(m: int, width: int, dtype: torch.dtype, pad: int = 0, shift: int = 0) -> Tensor:
    """Normal rows ``[m, width]``; a view ``shift`` elements into a buffer with ``pad`` NaN elements between rows."""
    buffer = torch.full((m * (width + pad) + shift,), float("nan"))
    view = buffer.to(dtype)[shift:].view(m, width + pad)[:, :width]
    view.copy_(torch.randn(m, width))
    return view


def apart(t: Tensor) -> Tensor:
    """The same numbers as a view, with another one behind each."""
    return torch.stack([t, torch.full_like(t, 3)], -1)[..., 0]


def make_segments(lengths: Sequence[int], n_clients: int = 1) -> Segments:
    """Segments of these lengths; clients take turns."""
    return Segments.from_lengths(lengths, client=[i % n_clients for i in range(len(lengths))], n_clients=n_clients)


def check_expand(
    backend: str, device: str = "cpu", lengths: Sequence[int] = (5, 40), n: int = 100, r: int = 8,
    dtype: torch.dtype = FP32, b_dtype: torch.dtype | None = None, n_clients: int = 1, pad: int = 0,
) -> None:  # fmt: skip
    """``y += scale · h b_cᵀ`` and nothing between the rows of y."""
    torch.manual_seed(0)
    segments = make_segments(lengths, n_clients)
    m = segments.n_tokens
    y, h, b = rows(m, n, dtype, pad), rows(m, r, dtype, pad), torch.randn(n_clients, n, r).to(b_dtype or dtype)
    expected = y.double()
    with ffk.use_backend("reference"):
        ffk.expand_(expected, h.double(), b.double(), segments, SCALE)
    whole = (y if not pad else y.as_strided((m, n + pad), (n + pad, 1))).to(device, copy=True)
    actual = whole[:, :n]
    with ffk.use_backend(backend):
        ffk.expand_(actual, h.to(device), b.to(device), to_device(segments, device), SCALE)
    assert_close("y", actual, expected)
    assert whole[:, n:].isnan().all(), "expand_ wrote between the rows of y"


def check_backward(
    backend: str, device: str = "cpu", lengths: Sequence[int] = (5, 40), n: int = 100, r: int = 8,
    dtype: torch.dtype = FP32, b_dtype: torch.dtype | None = None, n_clients: int = 1, pad: int = 0,
    accumulate: bool = False, deterministic: bool = True, with_squares: bool = True, column: int = 4, shift: int = 0,
) -> None:  # fmt: skip
    """dh, g and the squared norms of the stored g; nothing outside the columns and the slot."""
    torch.manual_seed(0)
    segments = make_segments(lengths, n_clients)
    m, s = segments.n_tokens, len(segments)
    dy, h = rows(m, n, dtype, pad, shift), rows(m, r, dtype, pad, shift)
    b = torch.randn(n_clients, n, r).to(b_dtype or dtype)
    before = torch.randn(s, n * r) if accumulate else torch.full((s, n * r), float("nan"))
    arena = torch.full((s, column + n * r + 7), float("nan"))
    arena[:, column : column + n * r] = before
    wide_arena = arena.double()
    with ffk.use_backend("reference"):
        dh_expected = ffk.backward(
            dy.double(), h.double(), b.double(), segments, SCALE, wide_arena, column, accumulate=accumulate
        )
    arena, squares = arena.to(device), torch.full((s, 3), float("nan"), dtype=torch.float64, device=device)
    with ffk.use_backend(backend):
        dh = ffk.backward(
            *(t.to(device) for t in (dy, h, b)), to_device(segments, device), SCALE, arena, column,
            squares if with_squares else None, 1, accumulate, deterministic,
        )  # fmt: skip
    assert dh.dtype == dtype and dh.shape == h.shape
    assert_close("dh", dh, dh_expected)
    check_arena(arena, wide_arena, column, n * r, squares, with_squares)


def check_arena(arena: Tensor, expected: Tensor, column: int, width: int, squares: Tensor, with_squares: bool) -> None:
    """The columns hold the expected numbers, the slot their squared norm, and everything else is untouched."""
    g = arena[:, column : column + width]
    assert_close("arena", g, expected[:, column : column + width])
    assert arena[:, :column].isnan().all() and arena[:, column + width :].isnan().all(), "wrote outside its columns"
    if with_squares and len(squares):
        stored = g.double().square().sum(1)
        assert ((squares[:, 1] - stored).abs() <= 1e-12 * stored).all(), "squares are not those of the stored numbers"
    untouched = squares[:, [0, 2]] if with_squares else squares
    assert untouched.isnan().all(), "wrote outside its slot of squares"


def check_outer(
    backend: str, device: str = "cpu", lengths: Sequence[int] = (5, 40), n: int = 20, k: int | None = 70,
    dtype: torch.dtype = FP32, pad: int = 0, accumulate: bool = False, with_squares: bool = True, column: int = 4,
) -> None:  # fmt: skip
    """Per-segment ``scale · pᵀq`` (or column sums of p) and the squared norms of what was stored."""
    torch.manual_seed(0)
    segments = make_segments(lengths)
    m, s, width = segments.n_tokens, len(segments), n * (k or 1)
    p, q = rows(m, n, dtype, pad), None if k is None else rows(m, k, dtype, pad)
    arena = torch.full((s, column + width + 7), float("nan"))
    arena[:, column : column + width] = torch.randn(s, width) if accumulate else float("nan")
    expected = arena.double()
    with ffk.use_backend("reference"):
        wide = (p.double(), None if q is None else q.double())
        ffk.outer(*wide, segments, SCALE, expected, column, accumulate=accumulate)
    arena, squares = arena.to(device), torch.full((s, 3), float("nan"), dtype=torch.float64, device=device)
    with ffk.use_backend(backend):
        ffk.outer(
            p.to(device), None if q is None else q.to(device), to_device(segments, device), SCALE, arena, column,
            squares if with_squares else None, 1, accumulate,
        )  # fmt: skip
    check_arena(arena, expected, column, width, squares, with_squares)


def check_clip(
    backend: str, device: str = "cpu", owners: Sequence[int] = (0, 0, 0), p: int = 300, groups: Sequence[int] = (),
    mode: str = "flat", give_squares: bool = False, magnitude: float = 1.0, broken: Sequence[int] = (),
    unlimited: bool = False, views: bool = False,
) -> None:  # fmt: skip
    """Factors, norms and clipped sums; rows in ``broken`` hold a NaN or an Inf and contribute exactly zero."""
    torch.manual_seed(0)
    client = torch.tensor(owners, dtype=torch.int32)
    c, s = max(owners, default=0) + 1, len(owners)
    arena = torch.randn(s, p) * magnitude
    bounds = torch.tensor([0, *groups, p], dtype=torch.int32)
    for i, row in enumerate(broken):
        arena[row, (7 * row) % p] = float("nan") if i % 2 else float("inf")
    limit = magnitude * torch.rand(c, len(groups) + 1, dtype=torch.float64) * p**0.5
    if unlimited:
        limit[0] = float("inf")
    pieces = [arena[:, lo:hi].double().square().sum(1) for lo, hi in pairwise(bounds.tolist())]
    squares = torch.stack(pieces, 1) if give_squares else None
    before = torch.randn(c, p, dtype=torch.float64) * magnitude
    expected = before.clone()
    with ffk.use_backend("reference"):
        factors_expected, norms_expected = ffk.clip_reduce_(expected, arena, client, limit, bounds, squares, mode)
    total = before.to(device, copy=True)
    with ffk.use_backend(backend):
        moved = [None if t is None else t.to(device) for t in (arena, client, limit, bounds, squares)]
        if views:
            moved[1:] = [None if t is None else apart(t) for t in moved[1:]]
        factors, norms = ffk.clip_reduce_(total, *moved, mode)
    for name, actual, wanted in (("norms", norms, norms_expected), ("factors", factors, factors_expected)):
        torch.testing.assert_close(actual.cpu(), wanted, rtol=1e-12, atol=0.0, equal_nan=True, msg=f"{name} differ")
    torch.testing.assert_close(total.cpu(), expected, rtol=1e-11, atol=1e-11 * magnitude)
    assert not factors[list(broken)].any(), "a broken row has a factor"


def check_privatize(
    backend: str,
    device: str = "cpu",
    clients: int = 2,
    p: int = 301,
    noise: float = 1.3,
    padding: bool = False,
    optimizer: str = "sgd",
    momentum: bool = False,
    proximal: bool = False,
    views: bool = False,
    key: int = 0x9E3779B97F4A7C15,
    **hyper: float,
) -> None:
    """State and moments after one noisy step, to the rounding of float32."""
    torch.manual_seed(0)
    c = clients
    tensors = {"state": torch.randn(c, p), "total": 5 * torch.randn(c, p, dtype=torch.float64)}
    adam = optimizer == "adamw"
    if adam or momentum:
        tensors["exp_avg"] = torch.randn(c, p)
    if adam:
        tensors["exp_avg_sq"] = torch.rand(c, p)
    if proximal:
        tensors["anchor"] = torch.randn(c, p)
    if padding:
        index = torch.arange(p, dtype=torch.int32) - 3
        index[p // 2 :] -= 10
        index[:3] = index[p // 2 : p // 2 + 10] = -1
        tensors["index"] = index
    tensors |= {
        "client_id": torch.tensor([7 + 2**40, 3, 11, 5][:c]),
        "step": torch.tensor([0, 123456, 9, 1][:c]),
        "age": torch.tensor([1, 40, 2, 3][:c]),
        "lr": torch.rand(c, dtype=torch.float64),
        "noise_std": noise * torch.tensor([1.0, 2.0, 0.0, 1e-3][:c], dtype=torch.float64),
        "denominator": torch.tensor([64.0, 3.0, 1.0, 9.0][:c], dtype=torch.float64),
    }
    moved = {name: t.to(device, copy=True) for name, t in tensors.items()}
    if views:
        moved |= {name: apart(t) for name, t in moved.items() if t.dim() == 1}
    before = tensors["state"].clone()
    settings = {"key": key, "stream": 5, "optimizer": optimizer, **hyper}
    with ffk.use_backend("reference"):
        ffk.privatize_step_(tensors["state"], **_rest(tensors), **settings)
    with ffk.use_backend(backend):
        ffk.privatize_step_(moved["state"], **_rest(moved), **settings)
    for name in ("state", "exp_avg", "exp_avg_sq"):
        if name in tensors:
            torch.testing.assert_close(moved[name].cpu(), tensors[name], rtol=3e-7, atol=1e-7, msg=f"{name} differs")
    if padding:
        assert torch.equal(moved["state"].cpu()[:, tensors["index"] < 0], before[:, tensors["index"] < 0]), (
            "padding moved"
        )


def check_linear_cross_entropy(
    backend: str, device: str = "cpu", lengths: Sequence[int] = (5, 12), d: int = 24, v: int = 301,
    dtype: torch.dtype = FP32, bias_dtype: torch.dtype | None = None, reduction: str = "mean", softcap: float = 0.0,
    ignored: float = 0.3, unknown: Sequence[int] = (), gradient: bool = True, pad: int = 0, size: float = 2.0,
    views: bool = False,
) -> None:  # fmt: skip
    """Losses, right predictions and gradient of the states; tokens in ``unknown`` have targets that do not exist."""
    torch.manual_seed(0)
    segments = make_segments(lengths)
    m = segments.n_tokens
    x, w = rows(m, d, dtype, pad), rows(v, d, dtype, pad)
    w *= size / d**0.5
    bias = None if bias_dtype is None else torch.randn(v).to(bias_dtype)
    likely = (x.float() @ w.float().T).argmax(1) if m else torch.zeros(0, dtype=torch.int64)
    targets = torch.where(torch.rand(m) < 0.3, likely, torch.randint(v, (m,)))
    targets[torch.rand(m) < ignored] = -7
    for at, token in enumerate(unknown):
        targets[token] = (v, -1)[at % 2]
    settings = {"ignore_index": -7, "reduction": reduction, "softcap": softcap, "gradient": gradient}
    with ffk.use_backend("reference"):
        wide = (None if t is None else t.double() for t in (x, w, bias))
        expected = ffk.linear_cross_entropy(*wide, targets, segments, **settings)
    with ffk.use_backend(backend):
        moved = [None if t is None else t.to(device) for t in (x, w, bias, targets)]
        if views:
            moved[2:] = [apart(t) for t in moved[2:]]
        losses, right, dx = ffk.linear_cross_entropy(*moved, to_device(segments, device), **settings)
    assert losses.dtype == FP32 and right.dtype == torch.int32 and dx.dtype == dtype
    assert dx.shape == ((m, d) if gradient else (0, d))
    broken = [t.isnan() for t in expected]
    for name, actual, wanted, lost in zip(("losses", "dx"), (losses, dx), expected[::2], broken[::2], strict=True):
        assert torch.equal(actual.isnan().cpu(), lost), f"{name} is NaN elsewhere than a target is unknown"
        assert_close(name, actual.cpu()[~lost], wanted[~lost])
    assert torch.equal(right.cpu(), expected[1]), "right predictions differ"
    assert not gradient or not dx.cpu()[targets == -7].any(), "an ignored token has a gradient"


def _rest(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t for name, t in tensors.items() if name != "state"}


def to_device(segments: Segments, device: str) -> Segments:
    """The same segments with index tensors on ``device``."""
    if device == "cpu":
        return segments
    return Segments.from_offsets(segments.offsets, segments.client, segments.n_clients, device)


_RAGGED = (3, 0, 37, 64, 1)
CASES: dict[str, Callable[..., None]] = {}


def _add(check: Callable[..., None], **variants: dict) -> None:
    for name, arguments in variants.items():
        CASES[f"{check.__name__.removeprefix('check_')}-{name}"] = partial(check, **arguments)


_add(
    check_expand,
    plain={"n": 128, "lengths": (64, 64)},
    bf16={"n": 300, "dtype": BF16},
    fp16_three_clients={"dtype": FP16, "lengths": _RAGGED, "n_clients": 3, "r": 5},
    fp32_b_of_two_clients={"dtype": BF16, "b_dtype": FP32, "lengths": _RAGGED, "n_clients": 2, "r": 16},
    strided_rows={"dtype": FP16, "pad": 3, "n_clients": 2},
    rank_1={"r": 1},
    rank_24={"r": 24, "dtype": FP16},
    rank_64={"r": 64, "dtype": BF16, "n": 72},
    rank_256={"r": 256, "dtype": FP16, "lengths": (9, 20), "n_clients": 2},
    rank_200_fp32={"r": 200, "lengths": (9, 20), "n": 40},
    one_column={"n": 1, "r": 4},
    no_tokens={"lengths": (0, 0), "n_clients": 2},
    no_segments={"lengths": ()},
)
_add(
    check_backward,
    plain={"n": 128, "lengths": (64, 64)},
    ragged_bf16={"lengths": _RAGGED, "dtype": BF16, "n": 300},
    ragged_fp16_atomic={"lengths": _RAGGED, "dtype": FP16, "n": 300, "deterministic": False},
    ragged_bf16_atomic={"lengths": _RAGGED, "dtype": BF16, "n": 300, "deterministic": False, "r": 5},
    fp32_atomic={"lengths": (20, 13), "n": 300, "deterministic": False},
    three_clients={"lengths": _RAGGED, "dtype": FP16, "n_clients": 3, "r": 5},
    fp32_b_of_two_clients={"lengths": _RAGGED, "dtype": BF16, "b_dtype": FP32, "n_clients": 2, "r": 16},
    strided_rows={"dtype": FP16, "pad": 3},
    strided_rows_aligned={"dtype": BF16, "pad": 16, "n": 304, "r": 16},
    accumulate={"accumulate": True, "lengths": _RAGGED, "n": 300, "dtype": FP16},
    without_squares={"with_squares": False, "n": 300, "dtype": BF16},
    pointers_off_16_bytes={"shift": 1, "dtype": BF16, "n": 272, "r": 16},
    unaligned_columns={"column": 3, "dtype": BF16, "r": 8, "n": 264},
    long_segment={"lengths": (1300, 0, 5), "n": 200, "r": 4, "dtype": FP16},
    long_segment_of_many={"lengths": (5,) * 140 + (600,), "n": 20, "r": 2, "dtype": FP16},
    long_segment_accumulate={"lengths": (700, 3), "n": 300, "r": 4, "dtype": BF16, "accumulate": True},
    long_segment_atomic={"lengths": (3, 1030), "n": 300, "r": 16, "dtype": FP16, "deterministic": False},
    rank_1={"r": 1, "lengths": _RAGGED},
    rank_12={"r": 12, "dtype": BF16, "n": 260},
    rank_24={"r": 24, "dtype": FP16, "n": 260},
    rank_64={"r": 64, "dtype": BF16, "n": 136},
    rank_128_reads_dy_twice={"r": 128, "dtype": FP16, "n": 150, "lengths": (9, 0, 70, 5), "n_clients": 2},
    rank_256={"r": 256, "dtype": BF16, "n": 72, "lengths": (9, 20)},
    rank_200_fp32={"r": 200, "n": 40, "lengths": (9, 20)},
    one_column={"n": 1, "r": 4},
    no_columns={"n": 0},
    no_tokens={"lengths": (0, 0)},
    no_segments={"lengths": ()},
)
_add(
    check_outer,
    plain={},
    bias={"k": None, "lengths": _RAGGED, "dtype": BF16},
    bias_long={"k": None, "lengths": (2100,), "n": 3},
    gradient_of_a={"n": 8, "k": 300, "lengths": _RAGGED, "dtype": FP16},
    head={"n": 2, "k": 100, "lengths": (1,) * 5, "dtype": BF16},
    tall={"n": 150, "k": 5, "dtype": FP16, "pad": 3},
    accumulate={"accumulate": True, "n": 70, "k": 150, "dtype": BF16, "column": 3},
    without_squares={"with_squares": False, "dtype": FP16},
    long_segment={"lengths": (2050, 0, 3), "n": 8, "k": 140, "dtype": FP16},
    no_columns={"n": 0},
    no_tokens={"lengths": (0, 0)},
    no_segments={"lengths": ()},
)
_add(
    check_clip,
    flat={},
    unlimited_client={"unlimited": True, "owners": (0, 1, 1, 0)},
    flat_given_norms={"give_squares": True},
    clients_out_of_order={"owners": (1, 0, 2, 1, 1, 0, 2, 2, 2, 2, 2, 2, 2), "p": 700},
    client_without_rows={"owners": (2, 2, 0)},
    per_layer={"owners": (0, 1, 0, 1), "groups": (30, 31, 200), "p": 600},
    per_layer_given_norms={"owners": (0, 1, 0, 1), "groups": (30, 31, 200), "give_squares": True},
    automatic={"mode": "automatic", "owners": (0, 1, 1)},
    automatic_per_layer={"mode": "automatic", "groups": (100,)},
    not_finite={"owners": (0, 1, 1, 0, 0), "broken": (1, 3)},
    not_finite_per_layer={"owners": (0, 1, 1, 0, 0), "broken": (1, 3), "groups": (100,)},
    huge={"magnitude": 1e30},
    tiny={"magnitude": 1e-30},
    many_columns={"p": 20001},
    views={"views": True, "owners": (0, 1, 0, 1), "groups": (30,), "p": 90},
    no_rows={"owners": ()},
)
_add(
    check_privatize,
    sgd={},
    padding={"padding": True},
    without_noise={"noise": 0.0, "weight_decay": 0.1},
    four_clients={"clients": 4, "p": 1030},
    momentum={"momentum": True, "beta1": 0.9, "padding": True},
    proximal={"proximal": True, "mu": 0.3},
    adamw={"optimizer": "adamw", "beta1": 0.9, "weight_decay": 0.01, "padding": True},
    adamw_dp={"optimizer": "adamw", "beta1": 0.9, "beta2": 0.99, "dp_bias_correction": True, "noise": 0.2},
    small_key={"key": 1, "p": 5},
    views={"views": True, "p": 40, "padding": True, "optimizer": "adamw", "beta1": 0.9},
)
_add(
    check_linear_cross_entropy,
    plain={},
    bf16_of_three_chunks_of_vocabulary={"dtype": BF16, "v": 9001, "d": 16, "lengths": (3, 0, 9)},
    fp16_with_bias={"dtype": FP16, "v": 515, "bias_dtype": FP16, "lengths": _RAGGED},
    fp32_bias_of_narrow_states={"dtype": BF16, "bias_dtype": FP32, "v": 128},
    sums={"reduction": "sum", "bias_dtype": FP32, "v": 1024, "dtype": BF16},
    capped={"softcap": 1.5, "v": 100},
    capped_bf16_with_bias={"softcap": 3.0, "dtype": BF16, "bias_dtype": BF16, "v": 333},
    unknown_targets={"unknown": (1, 7), "lengths": (3, 3, 6), "dtype": BF16},
    sharp={"size": 40.0, "dtype": FP16, "v": 200},
    strided_rows={"pad": 3, "dtype": FP16, "d": 33},
    views={"views": True, "bias_dtype": FP32, "v": 60},
    without_gradient={"gradient": False, "dtype": BF16},
    one_token={"lengths": (1,), "ignored": 0.0, "v": 5, "d": 1},
    vocabulary_of_one={"v": 1, "dtype": BF16},
    all_ignored={"ignored": 1.1, "dtype": BF16},
    long_segment={"lengths": (1100, 3), "d": 8, "v": 37, "dtype": BF16},
    no_tokens={"lengths": (0, 0)},
    no_segments={"lengths": ()},
)
