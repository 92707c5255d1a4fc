"""The Triton kernels on a real device: every shared case, on inputs that are fresh each time and poisoned buffers."""

import time

import pytest
import torch
from cases import CASES

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def fresh_inputs_and_poisoned_buffers(monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    seeded, fresh = torch.manual_seed, time.time_ns() % 2**32
    print(f"seed {fresh}")
    monkeypatch.setattr(torch, "manual_seed", lambda value: seeded(fresh + value))
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", CASES)
def test_kernel_on_the_device_equals_the_float64_reference(name):
    CASES[name]("triton", device="cuda")
