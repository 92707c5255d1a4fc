"""T3: the compiled PTX of the kernels, executed for sm_80 and sm_90: values, bounds, races, unwritten reads."""

import re
from unittest import mock

import pytest
import torch
from cases import CASES
from emulator import launch
from emulator.launch import emulated
from triton_cases import NOT_EMULATED, TRITON_CASES

#: Cases that the interpreter covers and whose emulation takes many seconds or adds no path.
LEFT_TO_THE_INTERPRETER = set(NOT_EMULATED) | {
    "backward-long_segment_of_many", "backward-rank_200_fp32", "expand-rank_200_fp32", "backward-rank_256",
}  # fmt: skip
LONG = {"backward-long_segment_atomic", "backward-long_segment_accumulate"}
ON_SM_80 = {
    "backward-ragged_bf16", "backward-three_clients", "backward-rank_64", "backward-ragged_fp16_atomic",
    "backward-unaligned_columns", "expand-fp16_three_clients", "expand-rank_64", "expand-bf16",
}  # fmt: skip


ALL = CASES | TRITON_CASES


@pytest.fixture(autouse=True)
def nan_filled_buffers():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", [n for n in ALL if n not in LEFT_TO_THE_INTERPRETER | LONG])
def test_sm_90_ptx_equals_float64_reference(name: str) -> None:
    with emulated(90) as reports:
        ALL[name]("triton")
    nothing_to_do = name.endswith(("no_segments", "no_columns", "expand-no_tokens", "clip-no_rows"))
    assert bool(reports) != nothing_to_do, f"{len(reports)} kernels were launched"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LONG))
def test_sm_90_ptx_of_long_segments_equals_float64_reference(name: str) -> None:
    with emulated(90) as reports:
        ALL[name]("triton")
    assert reports, "no kernel was launched"


@pytest.mark.parametrize("name", sorted(ON_SM_80))
def test_sm_80_ptx_equals_float64_reference(name: str) -> None:
    with emulated(80) as reports:
        ALL[name]("triton")
    assert reports, "no kernel was launched"


def test_the_logit_of_the_target_is_read_by_all_warps_before_its_gradient_takes_its_place() -> None:
    parse, compiled = launch.parse, []
    keep = mock.patch.object(launch, "parse", lambda ptx: (compiled.append(ptx), parse(ptx))[1])
    with emulated(80), keep:
        ALL["linear_cross_entropy-plain"]("triton")  # float32
    ptx = next(ptx for ptx in compiled if "_softmax_gradient_kernel" in ptx)
    logit = [read.end() for read in re.finditer(r"ld\.global\.b32", ptx)][-1]
    gradient = ptx.index("st.global.v4", logit)
    assert "bar.sync" in ptx[logit:gradient]
