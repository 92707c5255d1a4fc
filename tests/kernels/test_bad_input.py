"""Wrong arguments are refused with one message on every backend before a launch; operations pass opcheck."""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from emulator.launch import emulated

import ffalora_kernels as ffk
from ffalora_kernels import Segments, dispatch
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


def copies(given: dict) -> dict[str, torch.Tensor]:
    """The numbers of all arguments that have some."""
    return {k: v.detach().clone() for k, v in given.items() if isinstance(v, torch.Tensor) and not v.is_meta}


def are_as(before: dict[str, torch.Tensor], given: dict) -> bool:
    return all(torch.equal(given[name], value) for name, value in before.items())


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
    given = make()
    before = copies(given)
    with pytest.raises(error, match=message):
        ffk.backward(**given)
    assert not launches and are_as(before, given)


def arguments_of(op: str) -> dict:
    """Valid arguments of the other operations."""
    wide, whole, arena = {"dtype": torch.float64}, torch.zeros(2, dtype=torch.int64), torch.zeros(2, 20)
    if op in ("expand_", "outer"):
        layer = {k: v for k, v in arguments().items() if k in ("h", "b", "segments", "scale")} | {
            "y": torch.zeros(5, 8)
        }
        target = {"segments": SEGMENTS, "scale": 1.0, "arena": arena, "column": 4}
        return layer if op == "expand_" else {"p": torch.zeros(5, 8), "q": torch.zeros(5, 2)} | target
    if op == "clip_reduce_":
        columns = torch.tensor([0, 20], dtype=torch.int32)
        limit = torch.ones(2, 1, **wide)
        return {
            "total": torch.zeros(2, 20, **wide), "arena": arena, "client": SEGMENTS.client, "max_grad_norm": limit,
            "group_columns": columns, "squares": limit.clone(),
        }  # fmt: skip
    rows = {name: torch.ones(2, **wide) for name in ("noise_std", "denominator", "lr")}
    return rows | {"state": arena, "total": torch.zeros(2, 20, **wide), "client_id": whole, "step": whole, "key": 1}


META = {"device": "meta"}
WRONG_ELSEWHERE: list[tuple[str, type[Exception], str, dict]] = [
    ("expand_", RuntimeError, "expand_ is not differentiable", {"h": torch.zeros(5, 2, requires_grad=True)}),
    ("expand_", ValueError, "expand_: y must be two-dimensional", {"y": torch.zeros(1, 5, 8)}),
    ("expand_", ValueError, "expand_: h has 6 rows but the segments cover 5", {"h": torch.zeros(6, 2)}),
    ("expand_", ValueError, r"each b\[c\] must be contiguous", {"b": torch.zeros(2, 2, 8).transpose(1, 2)}),
    ("expand_", ValueError, "b: all tensors must be on one device", {"b": torch.zeros(2, 8, 2, **META)}),
    ("outer", RuntimeError, "outer is not differentiable", {"q": torch.zeros(5, 2, requires_grad=True)}),
    ("outer", TypeError, "outer: q is torch.float16 but p is torch.float32", {"q": torch.zeros(5, 2).half()}),
    ("outer", ValueError, "outer: q has 4 rows but the segments cover 5", {"q": torch.zeros(4, 2)}),
    ("outer", ValueError, "outer: all tensors must be on one device", {"q": torch.zeros(5, 2, **META)}),
    ("outer", ValueError, "outer: .*'offsets'", {"p": torch.zeros(5, 8, **META), "q": None}),
    ("outer", ValueError, "width 24 do not fit", {"q": torch.zeros(5, 3)}),
    ("outer", ValueError, "arena must be row-major", {"arena": torch.zeros(20, 2).T}),
    ("outer", ValueError, r"arena: .*'arena': device\(type='meta'", {"arena": torch.zeros(2, 20, **META)}),
    ("outer", ValueError, "arena: .*'squares'", {"squares": torch.zeros(2, 1, dtype=torch.float64, **META)}),
    ("expand_", ValueError, "y is written into, but its rows share", {"y": torch.zeros(1, 8).expand(5, 8)}),
    ("outer", ValueError, "squares is written", {"squares": torch.zeros(1, 1, dtype=torch.float64).expand(2, 1)}),
    ("clip_reduce_", ValueError, "total is written", {"total": torch.zeros(1, 20, dtype=torch.float64).expand(2, 20)}),
    ("outer", ValueError, "squares must be float64", {"squares": torch.zeros(2, 1)}),
    ("outer", ValueError, "slot=1", {"squares": torch.zeros(2, 1, dtype=torch.float64), "slot": 1}),
    ("clip_reduce_", ValueError, "mode must be one of", {"mode": "none"}),
    ("clip_reduce_", ValueError, "total must be torch.float64", {"total": torch.zeros(2, 20)}),
    ("clip_reduce_", ValueError, r"client must be torch.int32 of shape \(2,\)", {"client": torch.zeros(3).int()}),
    ("clip_reduce_", ValueError, "arena must be row-major", {"arena": torch.zeros(20, 2).T}),
    ("clip_reduce_", ValueError, "one device", {"squares": torch.zeros(2, 1, dtype=torch.float64, **META)}),
    ("clip_reduce_", ValueError, "one device.*'group_columns'", {"group_columns": torch.zeros(2, **META).int()}),
    ("clip_reduce_", ValueError, r"gamma must be positive and finite.*0\.0", {"mode": "automatic", "gamma": 0.0}),
    ("clip_reduce_", ValueError, "gamma must be positive and finite.*nan", {"mode": "automatic", "gamma": math.nan}),
    ("privatize_step_", ValueError, "optimizer must be one of", {"optimizer": "adam"}),
    ("privatize_step_", ValueError, "needs exp_avg, exp_avg_sq and age", {"optimizer": "adamw"}),
    ("privatize_step_", ValueError, "mu=1 needs anchor", {"mu": 1}),
    ("clip_reduce_", ValueError, "arena must be torch.float32", {"arena": torch.zeros(2, 20).bfloat16()}),
    ("privatize_step_", ValueError, "state must be torch.float32", {"state": torch.zeros(2, 20).bfloat16()}),
    ("privatize_step_", ValueError, "state must be torch.float32", {"state": torch.zeros(2, 20).double()}),
    ("privatize_step_", ValueError, "state must be row-major", {"state": torch.zeros(20, 2).T}),
    ("privatize_step_", ValueError, "exp_avg must be torch.float32", {"exp_avg": torch.zeros(2, 20).double()}),
    ("privatize_step_", ValueError, "step must be torch.int64", {"step": torch.zeros(2)}),
    ("privatize_step_", ValueError, "lr must be torch.float64", {"lr": torch.zeros(2)}),
    ("privatize_step_", ValueError, r"index must be torch.int32 of shape \(20,\)", {"index": torch.zeros(19).int()}),
    ("privatize_step_", ValueError, "one device", {"anchor": torch.zeros(2, 20, **META)}),
    ("privatize_step_", ValueError, "one device.*'step'", {"step": torch.zeros(2, **META).long()}),
    ("privatize_step_", ValueError, "one device.*'index'", {"index": torch.zeros(20, **META).int()}),
    ("privatize_step_", ValueError, "key must fit into 64 bits", {"key": 2**64}),
]


@pytest.mark.parametrize(("op", "error", "message", "changed"), WRONG_ELSEWHERE, ids=[w[2] for w in WRONG_ELSEWHERE])
def test_wrong_arguments_of_every_other_operation_are_refused(launches: list, op, error, message, changed) -> None:
    given = arguments_of(op) | changed
    before = copies(given)
    with pytest.raises(error, match=message):
        getattr(ffk, op)(**given)
    assert not launches and are_as(before, given)


BEYOND = [
    ("client", [0, 2**20], r"client must lie in 0 … 1, but client\[1\] is 1048576"),
    ("client", [-1, 0], r"client must lie in 0 … 1, but client\[0\] is -1"),
    ("group_columns", [0, 2**27], r"group_columns must ascend in 0 … 20, but group_columns\[1\] is 134217728"),
    ("group_columns", [8, 4], r"group_columns must ascend in 0 … 20, but group_columns\[1\] is 4"),
]


@pytest.mark.parametrize(("name", "values", "message"), BEYOND)
def test_clipping_in_cpp_touches_no_memory_but_that_of_its_matrices(name: str, values: list[int], message: str) -> None:
    pytest.importorskip("ffalora_kernels.cpu")
    changed = {name: torch.tensor(values, dtype=torch.int32)}
    with pytest.raises(ValueError, match=message), ffk.use_backend("cpp"):
        ffk.clip_reduce_(**(arguments_of("clip_reduce_") | changed))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize(("limit", "mode"), [(math.nan, "flat"), (-1.0, "flat"), (math.inf, "automatic")])
def test_limits_that_clip_nothing_are_refused_where_they_can_be_read(backend: str, limit: float, mode: str) -> None:
    if load(backend)[0] is None:
        pytest.skip(load(backend)[1])
    given = arguments_of("clip_reduce_") | {"mode": mode}
    given["max_grad_norm"] = torch.tensor([[1.0], [limit]], dtype=torch.float64)
    with ffk.use_backend(backend), pytest.raises(ValueError, match=rf"max_grad_norm must not be .*got .*{limit}"):
        ffk.clip_reduce_(**given)
    assert not given["total"].any()


def test_a_backend_that_was_asked_for_answers_on_every_thread() -> None:
    """Autograd runs the backward passes of a GPU on threads of its own."""
    answered = []
    other = threading.Thread(target=lambda: answered.append(dispatch.choose("backward", "cpu")[1]))
    with ffk.use_backend("reference"):
        other.start()
        other.join()
    assert answered == ["reference"]


def test_cpp_takes_no_tensors_of_another_device() -> None:
    pytest.importorskip("ffalora_kernels.cpu")
    with ffk.use_backend("cpp"), pytest.raises(ffk.BackendUnavailable, match="expand_ was given cuda tensors"):
        dispatch.choose("expand_", "cuda")


def test_rows_that_there_are_none_of_may_have_any_strides() -> None:
    none = Segments.from_lengths([0])
    dh = ffk.backward(
        torch.zeros(()).expand(0, 8), torch.zeros(0, 2), torch.zeros(1, 8, 2), none, 1.0, torch.ones(1, 16), 0
    )
    assert dh.shape == (0, 2)


@pytest.mark.parametrize("op", ["expand_", "privatize_step_"])
def test_a_gradient_through_numbers_that_an_operation_changed_is_refused(op: str) -> None:
    given = arguments_of(op)
    changed = given["y" if op == "expand_" else "state"]
    loss = (torch.ones_like(changed).requires_grad_() * changed).sum()
    getattr(ffk, op)(**given)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def _calls() -> dict[str, tuple[tuple, dict]]:
    index, wide = (SEGMENTS.offsets, SEGMENTS.client), {"dtype": torch.float64}
    y, h, b, arena = torch.randn(5, 8), torch.randn(5, 2), torch.randn(2, 8, 2), torch.randn(2, 20)
    squares, whole = torch.zeros(2, 1, **wide), torch.zeros(2, dtype=torch.int64)
    columns = torch.tensor([0, 20], dtype=torch.int32)
    ones = torch.ones(2, **wide)
    return {
        "expand_": ((y, h, b, *index, 1.0, 3), {}),
        "backward": ((y, h, b, *index, 1.0, 3, arena, 4, squares, 0, False, True), {}),
        "outer": ((y, h, index[0], 1.0, 3, arena, 4, squares, 0, False), {}),
        "clip_reduce_": (
            (torch.zeros(2, 20, **wide), arena, None, index[1], torch.ones(2, 1, **wide), columns, "flat", 0.01), {},
        ),
        "privatize_step_": (
            (torch.randn(2, 20),),
            {
                "exp_avg": torch.zeros(2, 20), "exp_avg_sq": None, "total": torch.zeros(2, 20, **wide), "anchor": None,
                "client_id": whole, "step": whole, "age": whole + 1, "noise_std": ones, "denominator": ones, "lr": ones,
                "index": None, "key": 1, "stream": 0, "optimizer": "sgd", "beta1": 0.9, "beta2": 0.999, "eps": 1e-8,
                "weight_decay": 0.0, "mu": 0.0, "dp_bias_correction": False,
            },
        ),
    }  # fmt: skip


@pytest.mark.parametrize("op", _calls())
def test_schema_and_fake_describe_what_the_operation_does(op: str) -> None:
    with ffk.use_backend("reference"):
        overload = getattr(torch.ops.ffalora, op).default
        torch.library.opcheck(overload, *_calls()[op], test_utils=("test_schema", "test_faketensor"))


STEP = {
    "clients": 2,
    "columns": 20,
    "client_id": 0,
    "step": 0,
    "age": 0,
    "noise_std": 0,
    "denominator": 0,
    "lr": 0,
    "index": 0,
}


@pytest.mark.parametrize("name", [*STEP, "state", "exp_avg", "exp_avg_sq", "total", "anchor"])
def test_a_step_in_cpp_needs_every_field_by_its_name(name: str) -> None:
    cpu = pytest.importorskip("ffalora_kernels.cpu")._cpu
    fields = STEP | dict.fromkeys(("state", "exp_avg", "exp_avg_sq", "total", "anchor"), cpu.Matrix(0, 0))
    cpu.StepTensors(**fields)
    with pytest.raises(TypeError, match=f"field {name} is missing"):
        cpu.StepTensors(**{field: value for field, value in fields.items() if field != name})
    with pytest.raises(TypeError, match="a field is given that there is not"):
        cpu.StepTensors(**fields, misspelt=0)
    with pytest.raises(TypeError):
        cpu.StepTensors(*fields.values())


@pytest.mark.parametrize("backend", ["cpp", "triton", "reference"])
def test_a_step_takes_its_fields_by_name_in_every_backend(backend: str) -> None:
    module, reason = dispatch.load(backend)
    if module is None:
        pytest.skip(reason)
    step = inspect.signature(module.IMPLEMENTATIONS["privatize_step_"])
    by_place = [p.name for p in step.parameters.values() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert by_place == ["state"]
    names = {argument.name for argument in torch.ops.ffalora.privatize_step_.default._schema.arguments}
    assert names == set(step.parameters)
