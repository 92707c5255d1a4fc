"""JSON with a digest of itself: a number that was changed by hand, or a file that was cut, is noticed when it is read.

A digest finds damage and carelessness, not forgery: whoever can write the file can compute it. What a key holder has
vouched for is in the data set's ledger (:mod:`ffalora.privacy.data_ledger`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files.atomic import write_atomically

_DIGEST = "digest"


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Writes plain JSON values with their digest, whole or not at all, and durably."""
    write_atomically(path, json.dumps({**values, _DIGEST: digest_of(values)}, indent=1).encode())


def read_sealed(path: Path) -> dict[str, Any]:
    """The values that :func:`write_sealed` wrote.

    Raises:
        OSError: it cannot be read. ValueError: it holds something else, or was changed since; names the file.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        stated = values.pop(_DIGEST)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a ledger of this version, or is damaged: {error}") from None
    if stated != digest_of(values):
        raise ValueError(f"{path} was changed since it was written; restore the file that the run left")
    return values


def digest_of(values: Mapping[str, Any]) -> str:
    """SHA-256 of plain JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
