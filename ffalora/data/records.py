"""Digests by which a record is known again in another run, another split, or another file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from .load import LoadedData
from .spelling import composed, key_of
from .users import Owners


def record_digests(data: LoadedData, rows: Sequence[int] | np.ndarray) -> list[bytes]:
    """SHA-256 of what each of these training rows says: its texts, its image, or who says what in its conversation; not
    its label.

    Texts are compared without upper case and by their words, so that spaces, a changed label, another tokeniser or
    another order of the rows make no other record of one. Anything else that differs does.

    Raises:
        TypeError: a value of which no bytes are known that another run would find again.
    """
    chosen = data.train.select_columns(list(data.input_columns)).select(np.asarray(rows, dtype=np.int64).tolist())
    return [hashlib.sha256(b"\0".join(map(_content, row.values()))).digest() for row in chosen]


def user_digests(owners: Owners, rows: Sequence[int] | np.ndarray) -> list[bytes]:
    """SHA-256 of the name of each user who owns any of these training rows, in any spelling: what one user spends in
    several runs composes, whichever rows these held.
    """
    return [hashlib.sha256(f"user\0{key_of(name)}".encode()).digest() for name in owners.names_in(rows)]


def client_digests(names: Sequence[str] | None) -> list[bytes]:
    """SHA-256 of the name of each client, in any spelling; without names (a site, or samples that were dealt among
    clients) the one digest of a ledger's clients: what one client spends in several runs composes, whichever rows these
    held.
    """
    if names is None:
        return [hashlib.sha256(b"client").digest()]
    return [hashlib.sha256(f"client\0{key_of(name)}".encode()).digest() for name in names]


def _content(value: Any) -> bytes:
    if isinstance(value, str):
        return " ".join(composed(value.casefold()).split()).encode()
    if hasattr(value, "convert"):  # an image of Pillow
        return np.asarray(value.convert("RGB")).tobytes()
    if isinstance(value, list) and all(isinstance(message, dict) for message in value):
        said = [_content(message[part]) for message in value for part in ("role", "content")]
        return b"".join(hashlib.sha256(part).digest() for part in said)
    array = np.asarray(value)
    if array.dtype.hasobject:
        raise TypeError(f"a record holds a {type(value).__name__}, by which it cannot be known again in another run")
    return array.tobytes()
