"""T3: the compiled PTX of the kernels, executed for sm_80 and sm_90: values, bounds, races, unwritten reads."""

import re

import pytest
import torch
from cases import CASES, TRITON_CASES
from emulator import emulated
from mutations import EMULATED, Mutation, mutated

#: Cases that the interpreter covers and whose emulation takes many seconds or adds no path.
LEFT_TO_THE_INTERPRETER = {
    "far_rows-beyond_31_bits",
    "backward-long_segment_of_many", "backward-rank_200_fp32", "expand-rank_200_fp32", "backward-rank_256",
}  # fmt: skip
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


@pytest.mark.parametrize("name", [n for n in ALL if n not in LEFT_TO_THE_INTERPRETER])
def test_sm_90_ptx_equals_float64_reference(name: str) -> None:
    with emulated(90) as reports:
        ALL[name]("triton")
    nothing_to_do = name.endswith(("no_segments", "expand-no_tokens", "seeded_linear-no_tokens", "clip-no_rows"))
    assert bool(reports) != nothing_to_do, f"{len(reports)} kernels were launched"


@pytest.mark.parametrize("name", sorted(ON_SM_80))
def test_sm_80_ptx_equals_float64_reference(name: str) -> None:
    with emulated(80) as reports:
        ALL[name]("triton")
    assert reports, "no kernel was launched"


@pytest.mark.parametrize("mutation", EMULATED, ids=lambda m: m.what)
def test_a_broken_kernel_fails_the_case_that_guards_it(mutation: Mutation) -> None:
    with emulated(90), mutated(mutation), pytest.raises((AssertionError, RuntimeError)) as caught:
        ALL[mutation.seen_by]("triton")
    assert type(caught.value).__name__ in ("AssertionError", "PTXError"), caught.value


def test_a_kernel_without_its_barriers_is_a_race() -> None:
    with emulated(80) as _:
        import ptxsim

        parse = ptxsim.parse
        ptxsim.parse = lambda ptx: parse(re.sub(r"\n\s*bar\.sync[^;]*;", "\n", ptx))
        try:
            with pytest.raises(RuntimeError, match="race"):
                ALL["backward-plain"]("triton")
        finally:
            ptxsim.parse = parse
