"""What a step frees is there for the next one, unless the user or the C library has it otherwise."""

import ctypes
import resource
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_engine

from ffalora.training import freed_memory, setup


@pytest.fixture
def unset(monkeypatch):
    for name in freed_memory.CHOSEN_BY:
        monkeypatch.delenv(name, raising=False)


def faults_of_a_step() -> int:
    """Page faults of this thread while it fills 64 MiB and frees them."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    blocks = [torch.ones(2**18) for _ in range(64)]
    del blocks
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def test_pages_that_a_step_freed_are_those_of_the_next_one(unset):
    if not freed_memory.keep_freed_memory():
        pytest.skip("this C library has no mallopt")
    faults_of_a_step()
    assert faults_of_a_step() < 1_000, "64 MiB are 16,384 pages"


@pytest.mark.parametrize("name", freed_memory.CHOSEN_BY)
def test_a_process_whose_user_has_chosen_is_left_alone(name, unset, monkeypatch):
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(ctypes, "CDLL", pytest.fail)
    assert not freed_memory.keep_freed_memory()


def test_another_c_library_is_left_alone(unset, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    assert not freed_memory.keep_freed_memory()


def test_an_engine_on_a_processor_keeps_what_its_steps_free(monkeypatch):
    kept = []
    monkeypatch.setattr(setup, "keep_freed_memory", lambda: kept.append(True))
    tiny_engine()
    assert kept == [True]
