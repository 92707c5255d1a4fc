"""What is kept for clients from round to round (personal factors, moments): on the disk, so that memory is that of the
cohort, however many clients there are.

A round's rows go into one safetensors file, which is never changed; reading maps it into memory and takes the rows that
are wanted. The checkpoint says where the last row of each client is, and a file is removed once a checkpoint is written
that needs nothing of it. So a kill at any moment leaves the state of the last checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..adapters import CheckpointError
from ..files.atomic import write_atomically

_SUFFIX = ".safetensors"


class ClientStates:
    """Rows by name and client: in memory since the last checkpoint, in files before it.

    A name's rows are all of one shape and dtype. Clients of whom nothing was ever kept take no room.
    """

    def __init__(self) -> None:
        self._fresh: dict[str, dict[int, Tensor]] = {}
        self._places: dict[str, dict[int, tuple[int, int]]] = {}  # of each client: number of the file, row in it
        self._digests: dict[int, str] = {}
        self._folder = Path()

    def known(self, name: str) -> list[int]:
        """Clients that have a row of this name, ascending."""
        return sorted(self._places.get(name, {}).keys() | self._fresh.get(name, {}).keys())

    def rows(self, name: str, clients: Sequence[int], default: Tensor) -> Tensor:
        """The rows of some clients, ``[C, …]`` of the dtype of ``default`` on the CPU; ``default`` ``[…]`` for whoever
        has none.
        """
        fresh, places = self._fresh.get(name, {}), self._places.get(name, {})
        found = default.cpu().repeat(len(clients), *[1] * default.dim())
        wanted: dict[int, list[tuple[int, int]]] = {}
        for position, client in enumerate(clients):
            if client in fresh:
                found[position] = fresh[client]
            elif client in places:
                number, row = places[client]
                wanted.setdefault(number, []).append((position, row))
        for number, listed in wanted.items():
            with safe_open(self._path(number), framework="pt") as file:
                kept = file.get_slice(name)
                for position, row in listed:
                    found[position] = kept[row : row + 1][0]
        return found

    def put(self, name: str, clients: Sequence[int], rows: Tensor) -> None:
        """Keeps the rows ``[C, …]`` of some clients, in the place of what they had."""
        kept = self._fresh.setdefault(name, {})
        for client, row in zip(clients, rows.detach(), strict=True):
            kept[client] = row.to("cpu", copy=True)

    def save(self, folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Writes the rows that are in memory into a file of ``folder``, durably.

        Returns:
            what :meth:`opened` needs, for a checkpoint: where the rows are, and the digests of the files. Once that is
            written, call :meth:`sweep`.
        """
        self._folder = folder
        if any(self._fresh.values()):
            self._carry_over()
            number = max(self._digests, default=0) + 1
            tensors = {name: torch.stack(list(rows.values())) for name, rows in self._fresh.items() if rows}
            folder.mkdir(parents=True, exist_ok=True)
            content = save(tensors)
            write_atomically(self._path(number), content)
            for name, rows in self._fresh.items():
                self._places.setdefault(name, {}).update({client: (number, i) for i, client in enumerate(rows)})
            self._fresh, self._digests[number] = {}, hashlib.sha256(content).hexdigest()
        needed = self._live()
        self._digests = {number: digest for number, digest in self._digests.items() if number in needed}
        listed = {
            name: torch.tensor([(client, *place) for client, place in sorted(places.items())], dtype=torch.int64)
            for name, places in self._places.items()
        }
        return listed, {str(number): digest for number, digest in self._digests.items()}

    @classmethod
    def opened(cls, folder: Path, listed: Mapping[str, Tensor], digests: Mapping[str, str]) -> ClientStates:
        """The states that :meth:`save` wrote.

        Raises:
            CheckpointError: a file is missing, or was changed since.
        """
        states = cls()
        states._folder = folder
        states._digests = {int(number): digest for number, digest in digests.items()}
        for name, places in listed.items():
            states._places[name] = {client: (number, row) for client, number, row in places.tolist()}
        for number, digest in states._digests.items():
            path = states._path(number)
            if not path.exists() or _digest_of(path) != digest:
                raise CheckpointError(
                    f"{path} is missing, or was changed since its checkpoint was written; use an earlier copy of both, "
                    "or start the run anew"
                )
        return states

    def sweep(self) -> None:
        """Removes the files of which the checkpoint just written needs nothing."""
        if self._folder.is_dir():
            for path in self._folder.glob(f"*{_SUFFIX}"):
                if int(path.stem) not in self._digests:
                    path.unlink(missing_ok=True)

    def _carry_over(self) -> None:
        """Takes the rows of a file into the next one where less than half of it is needed still, so that the disk holds
        at most about twice what is needed.
        """
        for number, live in self._live(but_fresh=True).items():
            with safe_open(self._path(number), framework="pt") as file:
                whole = sum(file.get_slice(name).get_shape()[0] for name in file.keys())
                if 2 * sum(map(len, live.values())) < whole:
                    for name, clients in live.items():
                        kept = file.get_tensor(name)
                        self.put(name, clients, kept[[self._places[name][client][1] for client in clients]])

    def _live(self, but_fresh: bool = False) -> dict[int, dict[str, list[int]]]:
        """For each file the clients by name whose last row is in it; ``but_fresh``: leaving out who has a newer row."""
        found: dict[int, dict[str, list[int]]] = {}
        for name, places in self._places.items():
            newer = self._fresh.get(name, {}) if but_fresh else {}
            for client, (number, _) in places.items():
                if client not in newer:
                    found.setdefault(number, {}).setdefault(name, []).append(client)
        return found

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}{_SUFFIX}"


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
