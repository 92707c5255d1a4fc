"""The door of a site: Flower starts a process for every message; each asks the one that stays and holds the model.

The site's folder says where it listens (a port of this machine) and holds the key that proves that whoever asks may
read that folder. What passes is JSON, then the bytes of each array; nothing is unpickled.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np

_DOOR, _WAIT = "door.json", 0.2
#: Seconds that a message waits for a site which is starting again.
PATIENCE = 120.0


class SiteAway(RuntimeError):
    """A site's process does not answer, or refused."""


def open_door(folder: Path) -> Listener:
    """Listens on a port of this machine and says in ``folder`` which, readable by its owner alone."""
    key = secrets.token_bytes(32)
    listener = Listener(("127.0.0.1", 0), backlog=16, authkey=key)
    path = folder / _DOOR
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps({"port": listener.address[1], "key": key.hex()}))
    return listener


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
            door = json.loads((folder / _DOOR).read_text())
            return Client(("127.0.0.1", int(door["port"])), authkey=bytes.fromhex(door["key"]))
        except (OSError, EOFError, ValueError, KeyError, AuthenticationError) as error:
            if time.monotonic() > deadline:
                raise SiteAway(
                    f"no site listens in {folder} ({type(error).__name__}); start it there: ffalora site {folder}"
                ) from None
            time.sleep(_WAIT)


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
