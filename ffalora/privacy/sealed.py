"""JSON with a digest of itself: a number that was changed by hand, or a file that was cut, is noticed when it is read.

A digest finds damage and carelessness, not forgery: whoever can write the file can compute it. What a key holder has
vouched for is in the data set's ledger (:mod:`ffalora.privacy.data_ledger`).

The digest may be published (model cards do), and tells nothing of the values: random bits are among them. Without
these, whoever can guess the rest of a file, such as the hash of records all but one of which they know, could see by
the digest whether the guess is right.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files.atomic import write_atomically

DIGEST, SALT = "digest", "salt"


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Writes plain JSON values with fresh random bits and the digest of both, whole or not at all, and durably."""
    salted = {**values, SALT: secrets.token_hex(16)}
    write_atomically(path, json.dumps({**salted, DIGEST: digest_of(salted)}, indent=1).encode())


def read_sealed(path: Path) -> dict[str, Any]:
    """The values that :func:`write_sealed` wrote.

    Raises:
        OSError: it cannot be read. ValueError: it holds something else, or was changed since; names the file.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        stated = values.pop(DIGEST)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a ledger of this version, or is damaged: {error}") from None
    if stated != digest_of(values):
        raise ValueError(f"{path} was changed since it was written; restore the file that the run left")
    values.pop(SALT, None)  # files of earlier versions have none
    return values


def digest_of(values: Mapping[str, Any]) -> str:
    """SHA-256 of plain JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
