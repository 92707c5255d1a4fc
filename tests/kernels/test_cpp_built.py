"""The C++ kernels are there wherever they could be built: without them their tests are skipped, and say nothing."""

import os
import shutil

import pytest

from ffalora_kernels.dispatch import load


def test_the_extension_is_built_where_there_is_a_compiler():
    if os.environ.get("FFALORA_NO_EXTENSION"):
        pytest.skip("FFALORA_NO_EXTENSION leaves it out")
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("there is no compiler here")
    backend, why = load("cpp")
    assert backend is not None, why
