"""Kernels broken on purpose must fail the case that guards them (see mutations.py)."""

import re
from unittest import mock

import pytest
import torch
from cases import CASES
from emulator import launch
from emulator.launch import emulated
from interpreted import interpret
from mutations import EMULATED, INTERPRETED, Mutation, mutated
from triton_cases import TRITON_CASES

ALL = CASES | TRITON_CASES


@pytest.fixture(autouse=True)
def nan_filled_buffers():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def mutants() -> dict:
    return interpret("mutants")


@pytest.mark.long
@pytest.mark.parametrize(
    "at", range(len(INTERPRETED)), ids=lambda at: f"{INTERPRETED[at].file}: {INTERPRETED[at].what}"
)
def test_a_broken_kernel_fails_the_case_that_guards_it_when_interpreted(at: int, mutants: dict) -> None:
    message = mutants[str(at)]
    assert message is not None, f"{INTERPRETED[at].seen_by} passes although: {INTERPRETED[at]}"
    assert "AssertionError" in message, message


@pytest.mark.long
@pytest.mark.parametrize("mutation", EMULATED, ids=lambda m: m.what)
def test_a_broken_kernel_fails_the_case_that_guards_it_when_emulated(mutation: Mutation) -> None:
    with emulated(90), mutated(mutation), pytest.raises((AssertionError, RuntimeError)) as caught:
        ALL[mutation.seen_by]("triton")
    assert type(caught.value).__name__ in ("AssertionError", "PTXError"), caught.value


def test_a_kernel_without_its_barriers_is_caught_as_a_race() -> None:
    parse = launch.parse
    without = mock.patch.object(launch, "parse", lambda ptx: parse(re.sub(r"\n\s*bar\.sync[^;]*;", "\n", ptx)))
    with emulated(80), without, pytest.raises(RuntimeError, match="race"):
        ALL["backward-plain"]("triton")
