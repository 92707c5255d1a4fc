"""Data from the hub by name, through ``datasets.load_dataset``; where there is no network, what its cache holds."""

from __future__ import annotations

import difflib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .embedded import EMBEDDED
from .errors import DataError
from .splits import ALL

if TYPE_CHECKING:
    from datasets import Dataset


def read_hub(spec: str) -> dict[str, Dataset]:
    """Splits of "name", "owner/name", either with ":config", or the short form "name/config" (as in "glue/sst2").

    A name with one slash is tried as owner/name first. A folder laid out like a repository of the hub may stand in for
    the name. Where the hub has no address, only its cache is looked at. Raises ``DataError`` when nothing of that name
    can be loaded, and at once where the name of embedded data is all but this one.
    """
    near = difflib.get_close_matches(spec, EMBEDDED, n=1, cutoff=0.85)
    if near:
        raise DataError(f"data.name={spec!r}: there is no such data; did you mean {near[0]}?")
    from datasets import DatasetDict, load_dataset

    name, colon, config = spec.rpartition(":")
    name, config = (name, config) if colon else (spec, "")
    tries: list[tuple[str, str | None]] = [(name, config or None)]
    if not config and name.count("/") in (1, 2):
        head, tail = name.rsplit("/", 1)
        tries.append((head, tail))
    reasons = []
    for path, subset in tries:
        try:
            with cache_alone_without_network(path):
                loaded = load_dataset(path, subset)
        except Exception as error:  # the hub client raises dozens of unrelated types; all end in one message
            reasons.append(f"{path}{f' ({subset})' if subset else ''}: {type(error).__name__}: {_first_line(error)}")
            continue
        return dict(loaded) if isinstance(loaded, DatasetDict) else {ALL: loaded}
    raise DataError(
        f"data.name={spec!r} is no embedded name, no file or folder, and could not be loaded from the hub.\n  "
        + "\n  ".join(reasons)
        + f"\nEmbedded names: {', '.join(EMBEDDED)}. Local data: give the path of a file or folder."
    )


@contextmanager
def cache_alone_without_network(name: str) -> Iterator[None]:
    """Keeps the hub's clients from asking for ``name`` again and again, for half a minute, where there is no network.

    A folder is never asked for.
    """
    if Path(name).expanduser().is_dir():
        yield
        return
    import datasets.config
    from huggingface_hub import constants

    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
    else:
        yield


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
