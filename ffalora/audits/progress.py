"""The turns that an audit trains for: those of the run, or as many as there is time for, with a bar."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tqdm import tqdm


def turns(planned: int, deadline: float, unit: str, progress: bool) -> Iterator[int]:
    """Numbers the turns from 0: ``planned`` ones, of which one at least is taken and none begins after ``deadline``.

    Args:
        deadline: in seconds of ``time.monotonic``.
        unit: what a turn is called; progress: show a bar with the time left.
    """
    with tqdm(total=planned, unit=unit, disable=not progress) as bar:
        for turn in range(planned):
            if turn and time.monotonic() >= deadline:
                return
            yield turn
            bar.update()
