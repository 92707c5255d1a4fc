"""Files that are there whole or not at all, and files that grow by one line after another."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path


def write_atomically(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Writes a file beside its target, flushes it to the disk and renames it: a kill or a power cut at any moment
    leaves the earlier file or the new one.

    Args:
        mode: who may read and write it, less what the umask takes.

    Raises:
        OSError: it cannot be written (no space, no permission); names the file, and leaves the earlier one as it was.
    """
    unfinished = path.with_name(path.name + ".partial")
    try:
        with open(unfinished, "wb", opener=partial(os.open, mode=mode)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        _flush_folder(path.parent)
    except OSError as error:
        _remove(unfinished)
        raise _explained(error, path) from error


def append_durably(path: Path, content: bytes) -> None:
    """Adds to the end of a file that is there, and flushes it to the disk. A kill or a power cut leaves a beginning of
    ``content`` at most behind what was there: a reader of lines leaves out one that does not end.

    Raises:
        OSError: it cannot be written; names the file, and leaves it as it was.
    """
    try:
        with open(path, "ab", buffering=0) as file:
            length = file.tell()
            try:
                rest = memoryview(content)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(length)
                raise
    except OSError as error:
        raise _explained(error, path) from error


def _explained(error: OSError, path: Path) -> OSError:
    return OSError(
        error.errno,
        f"cannot write: {error.strerror or error}; what was there before is intact. Make room, or give a folder that "
        "can be written, and go on",
        str(path),
    )


def _flush_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, where folders can be opened at all."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the error that is being reported says more
        return
