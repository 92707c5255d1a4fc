"""What a step frees is there for the next one, unless the user or the C library has it otherwise."""

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from tiny import tiny_engine

from ffalora.training import freed_memory, setup

#: Prints the page faults of a process that fills 64 MiB (16,384 pages) and frees them, before and after the call.
STEPS = """
import ctypes, resource, runpy, sys
module, libc = runpy.run_path(sys.argv[1]), ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(2**20) for _ in range(64)]
    for block in blocks:
        ctypes.memset(block, 1, 2**20)
    for block in blocks:
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
given_back = faults()
if module["keep_freed_memory"]():
    faults()
    print(given_back, faults())
"""


@pytest.fixture
def unset(monkeypatch):
    for name in freed_memory.CHOSEN_BY:
        monkeypatch.delenv(name, raising=False)


def test_pages_that_a_step_freed_are_those_of_the_next_one(unset):
    command = [sys.executable, "-c", STEPS, freed_memory.__file__]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ)).stdout
    if not found:
        pytest.skip("this C library has no mallopt")
    given_back, kept = map(int, found.split())
    assert given_back > 15_000 and kept < 1_000


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
