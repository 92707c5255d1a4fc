"""Which exceptions are a user's to mend: those get one message; all others keep their traceback."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import IO, Any

import click

_OURS = ("ffalora", "ffalora_kernels")


class Interrupted(click.ClickException):
    """Ctrl-C during a run; the message says what is on disk and how to go on."""

    exit_code = 130

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"\n{self.format_message()}", err=True)


def explain(error: Exception) -> str | None:
    """The message for an error that the user can mend, or None for one that is a fault of the program.

    To mend are: values and states that our own code refused (the exception was raised in one of our packages, whose
    messages name the parameter and the remedy), files that cannot be read or written, and a full disk, which libraries
    report without the name of a file.
    """
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or error}"
    if os.strerror(errno.ENOSPC) in str(error):
        return f"{os.strerror(errno.ENOSPC)}; make room, take away what was begun, and give the command again"
    if isinstance(error, ValueError | RuntimeError) and _raised_in(error) in _OURS and str(error):
        return str(error)
    return None


def _raised_in(error: Exception) -> str:
    """Top-level package of the code that raised."""
    frames = list(traceback.walk_tb(error.__traceback__ or sys.exc_info()[2]))
    return frames[-1][0].f_globals.get("__name__", "").partition(".")[0] if frames else ""
