"""One process at a time: a lock beside a file, which the operating system takes back from whoever is killed."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

#: Seconds that a writer may hold a lock, by far, before another gives up.
PATIENCE = 60.0
_POLL = 0.005


def lock_of(path: Path) -> Path:
    """The file that is the lock of ``path``, beside it."""
    return path.with_name(f"{path.name}.lock")


@contextmanager
def locked(path: Path, timeout: float = PATIENCE) -> Iterator[None]:
    """Holds the lock of ``path`` (the file ``PATH.lock`` beside it), among threads and processes.

    The lock belongs to the open file, so it ends with the process that holds it, however that ends. The file stays.

    Raises:
        TimeoutError: another process held it for ``timeout`` seconds. OSError: the lock cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_of(path))
    try:
        lock.acquire(timeout=timeout, poll_interval=_POLL)
    except Timeout:
        raise TimeoutError(
            errno.ETIMEDOUT,
            f"another process has held {path.name}.lock for {timeout:g} seconds; end it, or wait until it is done",
            str(path),
        ) from None
    try:
        yield
    finally:
        lock.release()


def was_let_go(path: Path) -> bool:
    """Whether the lock of ``path`` was held once and is not now."""
    if not lock_of(path).exists():
        return False
    try:
        with locked(path, timeout=0.0):
            return True
    except TimeoutError:
        return False
