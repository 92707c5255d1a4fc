"""What a private step refuses before it begins: unprotected tensors, draws that are not Poisson, ledgers that do not
fit, batches and losses that do not keep samples apart.

Everything here raises a ``ValueError`` with the name of what is wrong and the remedy; nothing is charged or changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..adapters import Adapters
from ..config import PrivacyConfig
from ..data.users import Owners
from .detectors import Modules, check_attached
from .drawn import count_drawn
from .independence import SamplesNotIndependent

if TYPE_CHECKING:
    from ..privacy.accounting import PrivacyLedger
    from .participant import Participant


def check_model(
    model: nn.Module, adapters: Adapters, device: torch.device, private: bool, processes: int | None = None
) -> bool:
    """What is trained is protected, is what the model reads, and keeps samples apart: whoever trains privately asks
    this whenever training begins, for models change.

    Args:
        processes: as in :func:`check_whole`.

    Returns:
        Whether the base is sharded over processes.

    Raises:
        ValueError, SamplesNotIndependent, StorageParted: with the name of what is wrong.
    """
    modules = list(model.named_modules())
    is_sharded = check_whole(modules, processes)
    check_formats(adapters)
    check_attached(modules, adapters, device)
    check_trained_tensors(modules, adapters, private)
    if private:
        check_batch_norm(modules)
    return is_sharded


def check_whole(modules: Modules, processes: int | None = None) -> bool:
    """Every process holds the whole model on one device: a part of it, or of a batch, has no sample's whole gradient,
    and processes that take different numbers of passes would wait for each other's parts for ever.

    Args:
        processes: that take as many passes each, so that ``fully_shard`` may have cut what is frozen over them; None
            where they do not.

    Returns:
        Whether it has.

    Raises:
        ValueError: names what cut the model, and the remedy.
    """
    remedy = (
        "load the whole model in each process (a base in fewer bits, see docs/peft.md, where memory is short), and let "
        "processes share the samples instead: torchrun, accelerate launch"
    )
    places: dict[str, str] = {}
    gathered = [prefix for prefix, module in modules if isinstance(module, FSDPModule)]
    for prefix, module in modules:
        kind = type(module).__name__
        if kind in ("FullyShardedDataParallel", "DataParallel", "DeepSpeedEngine"):
            raise ValueError(f"the model is wrapped in {kind}, which cuts it or its batches; {remedy}")
        for name, tensor in module._parameters.items():
            if tensor is None:
                continue
            full = f"{prefix}.{name}" if prefix else name
            if isinstance(tensor, DTensor):
                by_layers = any(full.startswith(f"{part}." if part else "") for part in gathered)
                _check_part(full, tensor, processes if by_layers and tensor.device_mesh.ndim == 1 else None, remedy)
            places.setdefault(str(tensor.device), full)
    is_hooked = any(hasattr(module, "_hf_hook") for _, module in modules)
    if "meta" in places and (is_hooked or len(places) > 1):  # all of it without hooks: nothing is computed, but counted
        raise ValueError(
            f"{places['meta']} is on the meta device: offloaded to the processor or the disk (cpu_offload, "
            f"device_map), or not loaded; {remedy}"
        )
    if len(places) > 1:
        shown = ", ".join(f"{name} on {device}" for device, name in places.items())
        raise ValueError(f"the model lies on {len(places)} devices ({shown}), as device_map puts it; {remedy}")
    return bool(gathered)


def _check_part(name: str, part: DTensor, processes: int | None, remedy: str) -> None:
    """A parameter that is cut is frozen, and is put together by all who share a step."""
    size = part.device_mesh.size()
    cut = f"{name} is a DTensor, cut over {size} processes (fully_shard, tensor parallelism)"
    if processes is None:
        raise ValueError(f"{cut}; {remedy}")
    if part.requires_grad:
        raise ValueError(f"{cut}, and trained; keep what is trained whole: fully_shard(…, ignored_params=…)")
    if size != processes:
        raise ValueError(f"{cut}, but {processes} share the steps; give the engine workers=find_workers()")


def check_formats(adapters: Adapters) -> None:
    """Segments' gradients are float32, and so are the numbers that they come from, or narrower.

    Raises:
        ValueError: names a layer of float64, and the remedy.
    """
    for layer in adapters.trained_layers():
        weight = getattr(layer.base_layer, "weight", None)
        if isinstance(weight, Tensor) and weight.dtype == torch.float64:
            raise ValueError(
                f"{layer.name} is float64, but samples' gradients are kept in float32, which would lose what float64 "
                "is for; cast the model (model.float()) before adapters are attached"
            )


def check_trained_tensors(modules: Modules, adapters: Adapters, private: bool) -> None:
    """Every tensor that requires grad must have a place in the state: nothing else is clipped and noised."""
    placed = {id(adapters.layout.parameter(place)) for place in adapters.layout.places}
    outside = [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in modules
        for name, p in module._parameters.items()
        if p is not None and p.requires_grad and id(p) not in placed
    ]
    if outside:
        raise ValueError(
            f"{len(outside)} trainable tensors are outside the adapters' state (first: {outside[0]}), so they would be "
            f"{'neither clipped nor noised' if private else 'left untrained'}; freeze them with requires_grad_(False)"
        )


def check_batch_norm(modules: Modules) -> None:
    """Batch normalisation by a batch's own statistics makes every sample's gradient depend on the others."""
    for name, module in modules:
        if isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats):
            raise SamplesNotIndependent(
                f"{name} is a {type(module).__name__} that normalises by the batch's own statistics, which mixes "
                "samples; put it into evaluation mode, or replace it by layer or group normalisation"
            )


def check_cohort(
    cohort: Sequence[Participant], privacy: PrivacyConfig, seeded: bool, owners: Owners | None = None
) -> None:
    """Ledgers belong to the participants, to their data, to the way they are sampled, and to the noise still unused.

    Args:
        cohort: who is about to train.
        privacy: the engine's configuration.
        seeded: noise is a function of client and step: a step that was taken must not be taken again.
        owners: whose each sample is, where users are protected.
    """
    ids = Counter((p.run if seeded else 0, p.client_id) for p in cohort)
    repeated = [client_id for (_, client_id), times in ids.items() if times > 1]
    if repeated:
        raise ValueError(
            f"client_id={repeated[0]} is in the cohort more than once: rows of one id would get the same noise, and "
            "their difference would show what it hides; give every client an id of its own"
        )
    for participant in cohort:
        _check_ledger(participant, privacy, seeded)
        if privacy.unit == "user":
            _check_users(participant, privacy, owners)
        drawn = count_drawn(privacy, owners, participant.samples)
        _check_size(f"client {participant.client_id}", ledger_of(participant), drawn)


def _check_size(who: str, ledger: PrivacyLedger, drawn: int) -> None:
    """The ledger is for as much as steps draw from."""
    if not ledger.covers(drawn):
        raise ValueError(
            f"{who}: its ledger is for dataset_size={ledger.dataset_size}, but it holds {drawn} {ledger.drawn}s; make "
            "a ledger for this data (and put what the old one spent into its prior)"
        )


def _check_users(participant: Participant, privacy: PrivacyConfig, owners: Owners | None) -> None:
    """The ledger counts users as they are drawn, and nobody owns more samples than it counts."""
    ledger, who = ledger_of(participant), f"client {participant.client_id}"
    if owners is None:
        raise ValueError(
            f"{who}: privacy.unit='user', but whose its samples are is not known; give owners=Owners.of(…)"
        )
    group = privacy.group
    if ledger.group != group:
        raise ValueError(
            f"{who}: its ledger counts group={ledger.group}, but privacy.draws={privacy.draws!r} with "
            f"samples_per_user={privacy.samples_per_user} makes groups of {group}; make them equal"
        )
    most = np.bincount(owners.select(participant.samples).users, minlength=1).max()
    if most > group and not privacy.draws_users:
        raise ValueError(
            f"{who}: a user owns {most} of its samples, more than samples_per_user={group}, which ε counts; keep no "
            "more of each (privacy.sampling.bounded_records)"
        )


def check_users(ledger: PrivacyLedger, users: np.ndarray | None) -> None:
    """A ledger counts what is clipped, and of users knows whose each sample is.

    Args:
        users: ``[n]``, whose each sample is; None where samples are protected.
    """
    clipped = "sample" if users is None else "user"
    if ledger.unit != clipped:
        raise ValueError(
            f"{ledger.name}: its ledger has unit={ledger.unit!r}, but users are {'not ' * (users is None)}given, so "
            f"that {clipped}s are clipped; give a ledger of unit={clipped!r}"
        )
    if users is None:
        return
    counts = np.unique(users, return_counts=True)[1]
    _check_size(ledger.name, ledger, len(counts) if ledger.group == 1 else len(users))
    if ledger.group > 1 and counts.max() > ledger.group:
        raise ValueError(
            f"{ledger.name}: a user owns {counts.max()} samples, more than group={ledger.group}, which ε counts; keep "
            "no more of each (privacy.sampling.bounded_records)"
        )


def _check_ledger(participant: Participant, privacy: PrivacyConfig, seeded: bool) -> None:
    ledger, who = ledger_of(participant), f"client {participant.client_id}"
    if ledger.unit != privacy.unit:
        raise ValueError(
            f"{who}: its ledger has unit={ledger.unit!r}, but {privacy.unit}s are protected; give it "
            f"unit={privacy.unit!r}"
        )
    if ledger.sampling != privacy.sampling:
        raise ValueError(
            f"{who}: its ledger counts sampling={ledger.sampling!r}, but privacy.sampling={privacy.sampling!r} is what "
            "happens; make them equal"
        )
    if len(np.unique(participant.samples)) < len(participant.samples):
        raise ValueError(
            f"{who}: a sample is among its {len(participant.samples)} more than once, so that one record could "
            "move the sum by more than max_grad_norm; list every sample once"
        )
    if seeded and ledger.steps_taken != participant.steps_taken:
        raise ValueError(
            f"{who}: its ledger has counted {ledger.steps_taken} steps, but steps_taken={participant.steps_taken}: "
            "seeded noise of a step would be used twice, or for none; restore both from one checkpoint"
        )


def ledger_of(participant: Participant) -> PrivacyLedger:
    """The participant's ledger; without one it may not train privately."""
    if participant.ledger is None:
        raise ValueError(
            f"client {participant.client_id} trains privately without a ledger: noise without accounting is refused"
        )
    return participant.ledger


def check_batch(inputs: Mapping[str, Tensor], targets: Tensor, samples: int) -> None:
    """A batch holds one row for each sample, in every input: two samples packed into one row share a gradient."""
    for name, value in [*inputs.items(), ("targets", targets)]:
        if value.dim() < 1 or value.shape[0] != samples:
            raise ValueError(
                f"collate returned {name} of shape {tuple(value.shape)} for {samples} samples: a row for each is "
                "needed. Samples packed into one row share one gradient, and clipping it protects none of them alone"
            )
