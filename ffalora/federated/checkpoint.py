"""Checkpoints: one safetensors file that holds the tensors, and in its header, as JSON, everything else. No pickle.
What clients keep lies in files beside it (see ``client_states``).

The file is written beside the target, flushed to the disk and renamed, so a kill at any moment leaves the last good
one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
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
from ..privacy.accounting import LedgerMismatch, PrivacyLedger
from ..privacy.client_level import ClientLevel
from ..privacy.clipping import AdaptiveQuantileClipping
from ..privacy.correlated_noise import CorrelatedNoise
from ..training.participant import Participant
from .client_states import ClientStates
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


def save_checkpoint(
    path: Path,
    config: Config,
    server: ServerState,
    participants: Sequence[Participant],
    ledgers: Mapping[str, PrivacyLedger],
    level: ClientLevel | None = None,
    frozen: str = "",
) -> None:
    """Everything that the next round depends on; ``level`` is the client-level mechanism, where there is one, and
    ``frozen`` the digest of what was never trained (``Wire.fingerprint`` when the run began).
    """
    tensors = {"row": server.row} | {f"tensor.{name}": value for name, value in server.tensors.items()}
    if config.privacy.noise != "secure":  # what secure noise depends on is as secret as the noise
        tensors |= {_NOISE + str(p.client_id): p.correlated.buffers for p in participants if p.correlated is not None}
    listed, digests = server.clients.save(path.with_suffix(".clients"))
    tensors |= {_CLIENTS + name: places for name, places in listed.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {
        "format": _FORMAT,
        "round": server.round,
        "config": _essence(config),
        "frozen": frozen,
        "clients": digests,
        "steps_taken": _steps_taken(config, server, participants),
        "clipping": {name: each.adaptive.state_dict() for name, each in _adaptive(participants, level).items()},
        "ledgers": {name: ledger.state_dict() for name, ledger in ledgers.items()},
    }
    header["digest"] = _digest(header, tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(tensors, metadata={_HEADER: json.dumps(header, allow_nan=False)}))
    server.clients.sweep()


def load_checkpoint(
    path: Path,
    config: Config,
    server: ServerState,
    participants: Sequence[Participant],
    ledgers: Mapping[str, PrivacyLedger],
    level: ClientLevel | None = None,
    frozen: str = "",
) -> None:
    """Continues from a checkpoint: changes ``server``, ``participants``, ``ledgers`` and ``level`` in place.

    Raises:
        CheckpointError: unreadable or changed since it was written, or of a run with another configuration (each
            differing key is named) or other frozen factors.
        LedgerMismatch: the data or the privacy terms of a client differ.
    """
    header, tensors = read_checkpoint(path)
    differing = differences(header["config"], _essence(config))
    if differing:
        raise CheckpointError(f"{path} belongs to a run with another configuration: {'; '.join(differing)}")
    if header.get("frozen") != frozen:
        raise CheckpointError(
            f"{path} was trained beside other frozen factors than this run has (an a of another seed, or rounded to "
            "another dtype); give the run the model, adapter.seed and dtypes that it began with"
        )
    row = tensors.pop("row")
    if row.shape != server.row.shape or row.dtype != server.row.dtype:
        raise CheckpointError(
            f"{path}: the state holds {row.numel()} numbers ({row.dtype}), this model has {server.row.numel()} "
            f"({server.row.dtype})"
        )
    steps = [header["steps_taken"].get(str(p.client_id)) for p in participants] if _is_counts(header) else [None]
    if not 0 <= header["round"] <= config.federation.rounds or None in steps or not bool(row.isfinite().all()):
        raise CheckpointError(
            f"{path}: round {header['round']} of {config.federation.rounds}, the steps of its clients, or its numbers "
            "(NaN or Inf) cannot be those of a run; use an earlier copy, or start the run anew"
        )
    try:
        for name, ledger in ledgers.items():
            ledger.resume(header["ledgers"][name])
        for participant in participants:
            participant.steps_taken = header["steps_taken"][str(participant.client_id)]
        _restore_noise(participants, tensors, server.row.device)
        for name, each in _adaptive(participants, level).items():
            each.adaptive = AdaptiveQuantileClipping.from_state_dict(header["clipping"][name])
    except LedgerMismatch:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} lacks what this run needs ({type(error).__name__}: {error})") from None
    listed = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_CLIENTS)}
    server.clients = ClientStates.opened(
        path.with_suffix(".clients"),
        {name.removeprefix(_CLIENTS): places for name, places in listed.items()},
        header["clients"],
    )
    server.row = row.to(server.row.device)
    server.round = header["round"]
    server.tensors = {name.removeprefix("tensor."): value.to(server.row.device) for name, value in tensors.items()}


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


def _adaptive(participants: Sequence[Participant], level: ClientLevel | None) -> dict[str, Any]:
    """Whoever has a clipping norm that moves, by name: clients, or the population."""
    everyone: dict[str, Any] = {str(p.client_id): p for p in participants} | {"population": level}
    return {name: each for name, each in everyone.items() if each is not None and each.adaptive is not None}


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
