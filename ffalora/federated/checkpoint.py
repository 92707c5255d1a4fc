"""Checkpoints: one safetensors file that holds the tensors, and in its header, as JSON, everything else. No pickle.
What clients keep lies in files beside it (see ``client_states``).

The file is written beside the target, flushed to the disk and renamed, so a kill at any moment leaves the last good
one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..adapters import CheckpointError
from ..config import Config
from ..config.values import differences
from ..files.atomic import write_atomically
from ..privacy.accounting import LedgerMismatch
from ..privacy.client_level import ClientLevel
from ..privacy.clipping import AdaptiveQuantileClipping
from ..privacy.correlated_noise import CorrelatedNoise
from ..training.participant import Participant
from .client_states import ClientStates
from .ledgers import ledgers_of
from .strategies import ServerState

_HEADER, _NOISE, _CLIENTS = "ffalora", "noise.", "clients."
_FORMAT = 2
#: Keys that may differ between a run and its continuation: they change neither the result nor the privacy.
_FREE_KEYS = (
    ("federation", "evaluate_every"),
    ("data", "max_evaluation_samples"),
    ("privacy", "check_gradients"),
    ("device",),
    ("report_to",),
    ("methods",),
)


@dataclass
class Checkpoint:
    """The checkpoint of a run, and everything that its next round depends on.

    Attributes:
        path: of the file. config: of the run.
        server, participants: what is written, and changed in place by loading, with their ledgers.
        level: the client-level mechanism, where there is one, likewise.
        frozen: digest of what is never trained (``Wire.fingerprint`` when the run began).
    """

    path: Path
    config: Config
    server: ServerState
    participants: Sequence[Participant] = ()
    level: ClientLevel | None = None
    frozen: str = ""

    def save(self) -> None:
        """Writes the file, and beside it what clients keep."""
        server, participants = self.server, self.participants
        tensors = {"row": server.row} | {f"tensor.{name}": value for name, value in server.tensors.items()}
        if self.config.privacy.noise != "secure":  # what secure noise depends on is as secret as the noise
            correlated = {str(p.client_id): p.correlated for p in participants if p.correlated is not None}
            tensors |= {_NOISE + client: noise.buffers for client, noise in correlated.items()}
        listed, digests = server.clients.save(self._clients)
        tensors |= {_CLIENTS + name: places for name, places in listed.items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        ledgers = ledgers_of(participants, self.level)
        header = {
            "format": _FORMAT,
            "round": server.round,
            "config": _essence(self.config),
            "frozen": self.frozen,
            "clients": digests,
            "steps_taken": _steps_taken(self.config, server, participants),
            "clipping": {name: each.adaptive.state_dict() for name, each in self._adaptive().items()},
            "ledgers": {name: ledger.state_dict() for name, ledger in ledgers.items()},
        }
        header["digest"] = _digest(header, tensors)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, save(tensors, metadata={_HEADER: json.dumps(header, allow_nan=False)}))
        server.clients.sweep()

    def load(self) -> None:
        """Continues from the file.

        Raises:
            CheckpointError: unreadable or changed since it was written, or of a run with another configuration (each
                differing key is named) or other frozen factors.
            LedgerMismatch: the data or the privacy terms of a client differ.
        """
        header, tensors = read_checkpoint(self.path)
        row = tensors.pop("row")
        self._check(header, row)
        server = self.server
        try:
            for name, ledger in ledgers_of(self.participants, self.level).items():
                ledger.resume(header["ledgers"][name])
            for participant in self.participants:
                participant.steps_taken = header["steps_taken"][str(participant.client_id)]
            _restore_noise(self.participants, tensors, server.row.device)
            for name, each in self._adaptive().items():
                each.adaptive = AdaptiveQuantileClipping.from_state_dict(header["clipping"][name])
        except LedgerMismatch:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(f"{self.path} lacks what this run needs ({type(error).__name__}: {error})") from None
        listed = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_CLIENTS)}
        places = {name.removeprefix(_CLIENTS): value for name, value in listed.items()}
        server.clients = ClientStates.opened(self._clients, places, header["clients"])
        server.row, server.round = row.to(server.row.device), header["round"]
        server.tensors = {name.removeprefix("tensor."): value.to(server.row.device) for name, value in tensors.items()}

    def _check(self, header: Mapping[str, Any], row: Tensor) -> None:
        """The file is of this run."""
        own, config = self.server.row, self.config
        differing = differences(header["config"], _essence(config))
        if differing:
            raise CheckpointError(f"{self.path} belongs to a run with another configuration: {'; '.join(differing)}")
        if header.get("frozen") != self.frozen:
            raise CheckpointError(
                f"{self.path} was trained beside other frozen factors than this run has (an a of another seed, or "
                "rounded to another dtype); give the run the model, adapter.seed and dtypes that it began with"
            )
        if row.shape != own.shape or row.dtype != own.dtype:
            raise CheckpointError(
                f"{self.path}: the state holds {row.numel()} numbers ({row.dtype}), this model has {own.numel()} "
                f"({own.dtype})"
            )
        holds_all = _is_counts(header) and all(str(p.client_id) in header["steps_taken"] for p in self.participants)
        if not 0 <= header["round"] <= config.federation.rounds or not holds_all or not bool(row.isfinite().all()):
            raise CheckpointError(
                f"{self.path}: round {header['round']} of {config.federation.rounds}, the steps of its clients, or its "
                "numbers (NaN or Inf) cannot be those of a run; use an earlier copy, or start the run anew"
            )

    def _adaptive(self) -> dict[str, Any]:
        """Whoever has a clipping norm that moves, by name: clients, or the population."""
        everyone: dict[str, Any] = {str(p.client_id): p for p in self.participants} | {"population": self.level}
        return {name: each for name, each in everyone.items() if each is not None and each.adaptive is not None}

    @property
    def _clients(self) -> Path:
        """The folder of what clients keep."""
        return self.path.with_suffix(".clients")


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors, after checking that they belong together."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        digest = header.pop("digest")
        if header["format"] != _FORMAT:
            raise ValueError(f"it is of another version (format {header['format']}, this one reads {_FORMAT})")
        complete = digest == _digest(header, tensors) and "row" in tensors and isinstance(header["clients"], dict)
        complete = complete and isinstance(header["round"], int) and isinstance(header["config"], dict)
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error}") from None
    if not complete:
        raise CheckpointError(
            f"checkpoint {path} was changed since it was written; use an earlier copy, or start the run anew"
        )
    return header, tensors


def _steps_taken(config: Config, server: ServerState, participants: Sequence[Participant]) -> dict[str, int]:
    """Local steps of each client; as if each had been in every round where its own would tell in which it was, which
    secure noise for whole clients keeps secret (nothing but the order of its batches depends on them there).
    """
    if config.privacy.unit == "client" and config.privacy.noise == "secure":
        return {str(p.client_id): server.round * config.federation.local_steps for p in participants}
    return {str(p.client_id): p.steps_taken for p in participants}


def _restore_noise(participants: Sequence[Participant], tensors: dict[str, Tensor], device: torch.device) -> None:
    """Takes what correlated noise depends on from ``tensors``, for every participant of whom it is there."""
    for participant in participants:
        buffers = tensors.pop(_NOISE + str(participant.client_id), None)
        if buffers is not None and participant.ledger is not None and participant.ledger.correlation is not None:
            noise = CorrelatedNoise(participant.ledger.correlation, buffers.to(device), participant.steps_taken)
            participant.correlated = noise


def _is_counts(header: Mapping[str, Any]) -> bool:
    """Whether the header holds a whole number of steps for each client."""
    counts = header.get("steps_taken")
    return isinstance(counts, dict) and all(type(n) is int and 0 <= n < 2**63 for n in counts.values())


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _essence(config: Config) -> dict[str, Any]:
    """The configuration without the keys that may change between a run and its continuation."""
    values = config.model_dump(mode="json")
    for *sections, key in _FREE_KEYS:
        place = values
        for section in sections:
            place = place[section]
        place.pop(key)
    return values
