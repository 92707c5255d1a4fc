"""The door of a site: Flower starts a process for every message; each asks the one that stays and holds the model.

The site's folder says where it listens (a port of this machine) and holds the key that proves that whoever asks may
read that folder. Each caller is heard by a thread of its own, and is let go where it is silent: it keeps nobody else
waiting. What passes is JSON, then the bytes of each array; nothing is unpickled.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

_DOOR, _WAIT = "door.json", 0.2
#: Seconds of silence, in the middle of an exchange, after which the other side is taken for gone.
SILENCE = 30.0
#: Seconds that a message waits for a site which is starting again.
PATIENCE = 120.0


class SiteAway(RuntimeError):
    """A site's process does not answer, or refused."""


def callers(folder: Path) -> Iterator[tuple[Connection, dict[str, Any], list[np.ndarray]]]:
    """Listens on a port of this machine, which it says in ``folder``, readable by its owner alone; whoever has asked
    for something, in order, and what (values and arrays). Connections are the receiver's to close.
    """
    key, heard = secrets.token_bytes(32), SimpleQueue[Any]()
    with Listener(("127.0.0.1", 0), backlog=16) as door:
        path = folder / _DOOR
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text(json.dumps({"port": door.address[1], "key": key.hex()}), encoding="utf-8")
        threading.Thread(target=_let_in, args=(door, key, heard), daemon=True).start()
        while True:
            call = heard.get()
            if isinstance(call, OSError):
                raise call
            yield call


def _let_in(door: Listener, key: bytes, heard: SimpleQueue) -> None:
    """Gives everybody who connects a thread of its own."""
    while True:
        try:
            connection = door.accept()
        except ConnectionError:  # it left before it was let in
            continue
        except OSError as error:
            heard.put(error)
            return
        threading.Thread(target=_hear, args=(connection, key, heard), daemon=True).start()


def _hear(connection: Connection, key: bytes, heard: SimpleQueue) -> None:
    """Takes what a caller who has the key asks for; whoever has not, or falls silent, is let go."""
    try:
        _limit_silence(connection, SILENCE)
        deliver_challenge(connection, key)
        answer_challenge(connection, key)
        heard.put((connection, *receive(connection)))
    except (AuthenticationError, EOFError, OSError, KeyError, TypeError, ValueError) as error:
        logger.warning("somebody knocked without the key, or said nothing of use (%s: %s)", type(error).__name__, error)
        connection.close()


def _limit_silence(connection: Connection, seconds: float) -> None:
    """Has a read or a write raise ``OSError`` where nothing passes for so many seconds; 0: it waits."""
    limit = int(1000 * seconds) if os.name == "nt" else struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    with socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as same:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            same.setsockopt(socket.SOL_SOCKET, option, limit)


def ask(folder: Path, task: Mapping[str, Any], arrays: Sequence[np.ndarray], patience: float = PATIENCE) -> tuple:
    """A site's reply: plain values, and arrays.

    Args:
        folder: of the site. task: plain values. arrays: of any dtype and shape.
        patience: seconds to wait for the site to listen; its work may take as long as it takes.

    Raises:
        SiteAway: nobody listens, the site ended in the middle of its work, or it refused; says why.
    """
    with _knock(folder, patience) as connection:
        try:
            send(connection, task, arrays)
            reply, received = receive(connection)
        except (EOFError, OSError):
            raise SiteAway(
                f"the site of {folder} ended in the middle of its work; what it began is charged, and it comes back"
            ) from None
    if "refused" in reply:
        raise SiteAway(str(reply["refused"]))
    return reply, received


def _knock(folder: Path, patience: float) -> Connection:
    deadline = time.monotonic() + patience
    while True:
        try:
            door = json.loads((folder / _DOOR).read_text(encoding="utf-8"))
            return _enter(int(door["port"]), bytes.fromhex(door["key"]))
        except (OSError, EOFError, ValueError, KeyError, AuthenticationError) as error:
            if time.monotonic() > deadline:
                raise SiteAway(
                    f"no site listens in {folder} ({type(error).__name__}); start it there: ffalora site {folder}"
                ) from None
            time.sleep(_WAIT)


def _enter(port: int, key: bytes) -> Connection:
    """A connection to whoever listens there and has the key too."""
    connection = Client(("127.0.0.1", port))
    try:
        _limit_silence(connection, SILENCE)
        answer_challenge(connection, key)
        deliver_challenge(connection, key)
        _limit_silence(connection, 0)
    except BaseException:
        connection.close()
        raise
    return connection


def send(connection: Connection, values: Mapping[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """Plain values and arrays into a connection."""
    shapes = [[array.dtype.str, array.shape] for array in arrays]
    connection.send_bytes(json.dumps({"values": dict(values), "arrays": shapes}).encode())
    for array in arrays:
        connection.send_bytes(np.ascontiguousarray(array).tobytes())


def receive(connection: Connection) -> tuple[dict[str, Any], list[np.ndarray]]:
    """What :func:`send` sent."""
    head = json.loads(connection.recv_bytes())
    arrays = [
        np.frombuffer(connection.recv_bytes(), dtype=np.dtype(kind)).reshape(shape) for kind, shape in head["arrays"]
    ]
    return head["values"], arrays
