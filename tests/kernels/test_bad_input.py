"""Wrong arguments are refused with one message on every backend before a launch; operations pass opcheck."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from emulator import emulated

import ffalora_kernels as ffk
from ffalora_kernels import Segments
from ffalora_kernels.dispatch import BACKENDS, load

SEGMENTS = Segments.from_lengths([3, 2], client=[0, 1], n_clients=2)


@pytest.fixture(params=BACKENDS)
def launches(request) -> Iterator[list]:
    """A backend is chosen; yields what it launched."""
    if load(request.param)[0] is None:
        pytest.skip(f"{request.param} cannot run here: {load(request.param)[1]}")
    with emulated(90) if request.param == "triton" else nullcontext([]) as reports, ffk.use_backend(request.param):
        yield reports


def arguments(**changed: object) -> dict:
    """Valid arguments of ``backward``, some of them changed."""
    valid = {
        "dy": torch.zeros(5, 8), "h": torch.zeros(5, 2), "b": torch.zeros(2, 8, 2), "segments": SEGMENTS, "scale": 1.0,
        "arena": torch.zeros(2, 20), "column": 4,
    }  # fmt: skip
    return valid | changed


WRONG: list[tuple[str, type[Exception], str, Callable[[], dict]]] = [
    ("dtypes", TypeError, "h is torch.float16 but dy is torch.float32", lambda: arguments(h=torch.zeros(5, 2).half())),
    ("dtype of b", TypeError, "b must be float32 or", lambda: arguments(b=torch.zeros(2, 8, 2).half())),
    ("shape of b", ValueError, r"b must be \[C,N,R\]", lambda: arguments(b=torch.zeros(1, 8, 2))),
    ("tokens", ValueError, "4 rows but the segments cover 5", lambda: arguments(dy=torch.zeros(4, 8))),
    ("elements not adjacent", ValueError, "must be adjacent", lambda: arguments(dy=torch.zeros(8, 5).T)),
    ("arena too small", ValueError, "do not fit", lambda: arguments(column=5)),
    ("negative column", ValueError, "do not fit", lambda: arguments(column=-1)),
    ("rows of the arena", ValueError, "3 rows for 2 segments", lambda: arguments(arena=torch.zeros(3, 20))),
    ("dtype of the arena", TypeError, "arena must be", lambda: arguments(arena=torch.zeros(2, 20).double())),
    ("device", ValueError, "one device", lambda: arguments(dy=torch.zeros(5, 8, device="meta"))),
    ("integers", TypeError, "must be float32, bfloat16 or float16", lambda: arguments(dy=torch.zeros(5, 8).int())),
    ("gradients", RuntimeError, "not differentiable", lambda: arguments(dy=torch.zeros(5, 8, requires_grad=True))),
]


@pytest.mark.parametrize(("error", "message", "make"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_arguments_are_refused_before_anything_is_launched(launches: list, error, message, make) -> None:
    with pytest.raises(error, match=message):
        ffk.backward(**make())
    assert not launches


def _calls() -> dict[str, tuple]:
    index, wide = (SEGMENTS.offsets, SEGMENTS.client), {"dtype": torch.float64}
    y, h, b, arena = torch.randn(5, 8), torch.randn(5, 2), torch.randn(2, 8, 2), torch.randn(2, 20)
    squares, whole = torch.zeros(2, 1, **wide), torch.zeros(2, dtype=torch.int64)
    columns = torch.tensor([0, 20], dtype=torch.int32)
    ones = torch.ones(2, **wide)
    return {
        "expand_": (y, h, b, *index, 1.0, 3),
        "backward": (y, h, b, *index, 1.0, 3, arena, 4, squares, 0, False, True),
        "outer": (y, h, index[0], 1.0, 3, arena, 4, squares, 0, False),
        "clip_reduce_": (
            torch.zeros(2, 20, **wide), arena, None, index[1], torch.ones(2, 1, **wide), columns, "flat", 0.01
        ),
        "privatize_step_": (
            torch.randn(2, 20), torch.zeros(2, 20), None, torch.zeros(2, 20, **wide), None, whole, whole, whole + 1,
            ones, ones, ones, None, 1, 0, "sgd", 0.9, 0.999, 1e-8, 0.0, 0.0, False,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("op", _calls())
def test_schema_and_fake_describe_what_the_operation_does(op: str) -> None:
    with ffk.use_backend("reference"):
        overload = getattr(torch.ops.ffalora, op).default
        torch.library.opcheck(overload, _calls()[op], test_utils=("test_schema", "test_faketensor"))
