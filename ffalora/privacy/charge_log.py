"""An append-only file of records, each sealed with a key and with the one before it; read and written under a lock.

The seal is HMAC-SHA256 (RFC 2104) over the seal before and the record, with a key in a file of its own. A record that
was changed, removed from the middle or put in by somebody without the key is noticed by whoever reads. Records removed
from the *end* are not, nor is a file rewritten by somebody who has the key: the log finds mistakes and strangers, and
is no defence against its owner.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files.atomic import write_atomically
from ..files.locks import locked
from .accounting import LedgerMismatch

LOG, KEY = "charges.jsonl", "key"


class ChargeLog:
    """The log in a folder, which is made with its key if it is missing.

    Args:
        folder: of this log alone.

    Raises:
        LedgerMismatch: there is a log without its key, or a key that is none.
    """

    def __init__(self, folder: Path):
        self.folder, self._log = folder, folder / LOG
        self._offset, self._seal = 0, ""
        folder.mkdir(parents=True, exist_ok=True)
        with locked(self._log):
            self._key = self._load_key()

    def salted(self, content: bytes) -> bytes:
        """32 bytes that only who has the key can make of ``content``."""
        return hmac.digest(self._key, b"record " + content, "sha256")

    @contextmanager
    def opened(self) -> Iterator[list[dict[str, Any]]]:
        """Holds the lock, and gives the records that were added since the last time, own ones included.

        Raises:
            LedgerMismatch: a record was changed or removed. TimeoutError: another process held the lock for too long.
        """
        with locked(self._log):
            yield self._read_on()

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a record durably; only while the log is :meth:`opened`."""
        seal = self._sealed(record)
        line = json.dumps({"record": record, "seal": seal}, ensure_ascii=False).encode() + b"\n"
        try:
            with open(self._log, "r+b" if self._log.exists() else "w+b") as file:
                file.seek(self._offset)
                file.truncate()  # what a killed writer left of a record that it never finished
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write: {error.strerror or error}; nothing was released. Make room, and go on",
                str(self._log),
            ) from error
        self._seal = seal
        self._offset += len(line)

    def _read_on(self) -> list[dict[str, Any]]:
        if not self._log.exists():
            if self._offset:
                raise LedgerMismatch(f"{self._log} is gone: what was spent is unknown; restore it")
            return []
        with open(self._log, "rb") as file:
            if file.seek(0, os.SEEK_END) < self._offset:
                raise LedgerMismatch(f"{self._log} has become shorter: charges were removed; restore it")
            file.seek(self._offset)
            content = file.read()
        found = []
        for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
            try:
                held = json.loads(line)
                record, seal = held["record"], self._sealed(held["record"])
                is_whole = hmac.compare_digest(seal, held["seal"])
            except (ValueError, KeyError, TypeError):
                is_whole = False
            if not is_whole:
                raise LedgerMismatch(
                    f"{self._log}: the record at byte {self._offset} was changed, or one before it removed, since it "
                    "was written; restore the file"
                )
            self._seal = seal
            self._offset += len(line)
            found.append(record)
        return found

    def _sealed(self, record: Mapping[str, Any]) -> str:
        content = self._seal + json.dumps(record, sort_keys=True)
        return hmac.new(self._key, content.encode(), hashlib.sha256).hexdigest()

    def _load_key(self) -> bytes:
        path = self.folder / KEY
        text = path.read_text(encoding="utf-8").strip() if path.exists() else ""
        if not text and not self._log.exists():  # new, or an earlier version was killed before it had written the key
            key = secrets.token_bytes(32)
            write_atomically(path, key.hex().encode(), mode=0o600)
            return key
        if not path.exists():
            raise LedgerMismatch(f"{path} is missing, without which {LOG} cannot be read; restore it")
        try:
            key = bytes.fromhex(text)
        except ValueError:
            key = b""
        if len(key) < 16:
            raise LedgerMismatch(f"{path} holds no key; restore it, or the log beside it cannot be read")
        return key
