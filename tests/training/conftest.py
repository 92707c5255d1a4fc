"""Recordings without a device."""

import pytest
from recorded import NoHostReads
from transformers.utils import import_utils


@pytest.fixture
def recorder(monkeypatch):
    """Replays by computing again, as a graph would, and refuses every read back; counts recordings."""
    monkeypatch.setattr(import_utils, "is_cuda_stream_capturing", lambda: True)
    made = []

    def record(compute):
        def replay():
            with NoHostReads():
                compute()

        replay()
        made.append(replay)
        return replay

    record.made = made
    return record
