"""A lock beside a file: one holder at a time, and none that outlives its process."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ffalora.files.locks import locked, was_let_go

HOLDER = """
import sys, time
from pathlib import Path
from ffalora.files.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "file")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_lock_that_another_process_holds_is_refused_with_its_name(holder, tmp_path):
    with pytest.raises(TimeoutError, match=r"file\.lock") as error:
        with locked(tmp_path / "file", timeout=0.1):
            pass
    assert error.value.filename == str(tmp_path / "file")


@pytest.mark.skipif(os.name != "posix", reason="kills by signal")
def test_a_killed_holder_leaves_the_lock_to_the_next(holder, tmp_path):
    assert not was_let_go(tmp_path / "file") and not was_let_go(tmp_path / "another")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert was_let_go(tmp_path / "file") and not was_let_go(tmp_path / "another")
    started = time.monotonic()
    with locked(tmp_path / "file", timeout=30):
        assert time.monotonic() - started < 10


def test_the_lock_ends_with_an_error_inside_it(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path / "file"):
        raise RuntimeError
    with locked(tmp_path / "file", timeout=0.1):
        pass
