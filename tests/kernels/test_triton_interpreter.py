"""T1: every case under Triton's interpreter (its own process: the mode is fixed when triton is imported)."""

import pytest
from cases import CASES
from interpreted import interpret
from triton_cases import TRITON_CASES


@pytest.fixture(scope="module")
def outcome() -> dict:
    return interpret()


@pytest.mark.parametrize("name", [*CASES, *TRITON_CASES])
def test_interpreted_kernel_equals_float64_reference(name: str, outcome: dict) -> None:
    assert outcome[name] is None, outcome[name]
