"""Data from the hub by name, through ``datasets.load_dataset``; where there is no network, what its cache holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .embedded import EMBEDDED
from .errors import DataError
from .splits import ALL

if TYPE_CHECKING:
    from datasets import Dataset


def read_hub(spec: str) -> dict[str, Dataset]:
    """Splits of "name", "owner/name", either with ":config", or the short form "name/config" (as in "glue/sst2").

    A name with one slash is tried as owner/name first. A folder laid out like a repository of the hub may stand in for
    the name. Raises ``DataError`` when nothing of that name can be loaded.
    """
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
            loaded = load_dataset(path, subset)
        except Exception as error:  # the hub client raises dozens of unrelated types; all end in one message
            reasons.append(f"{path}{f' ({subset})' if subset else ''}: {type(error).__name__}: {_first_line(error)}")
            continue
        return dict(loaded) if isinstance(loaded, DatasetDict) else {ALL: loaded}
    raise DataError(
        f"data={spec!r} is no embedded name, no file or folder, and could not be loaded from the hub.\n  "
        + "\n  ".join(reasons)
        + f"\nEmbedded names: {', '.join(EMBEDDED)}. Local data: give the path of a file or folder."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
