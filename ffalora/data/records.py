"""Digests by which a record is known again in another run, another split, or another file."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from .load import LoadedData
from .spelling import key_of
from .users import Owners


def record_digests(data: LoadedData, rows: Sequence[int] | np.ndarray) -> list[bytes]:
    """SHA-256 of what each of these training rows says: its texts or its image, not its label.

    Texts are compared without upper case and by their words, so that spaces, a changed label, another tokeniser or
    another order of the rows make no other record of one. Anything else that differs does.
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
        return " ".join(unicodedata.normalize("NFC", value.casefold()).split()).encode()
    if hasattr(value, "convert"):  # an image of Pillow
        return np.asarray(value.convert("RGB")).tobytes()
    return np.asarray(value).tobytes() if not isinstance(value, dict) else repr(sorted(value.items())).encode()
