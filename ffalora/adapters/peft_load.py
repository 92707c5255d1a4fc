"""Reads checkpoints in PEFT's format, ours or PEFT's own, and attaches what they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..config.adapter import AdapterConfig
from .attach import attach
from .base_layers import sharers
from .handle import Adapters
from .peft import CONFIG_FILE, OWN_FILE, PREFIX, WEIGHTS_FILE, head_tensors
from .variants import VARIANTS

_ORDINARY_RANK = 1024


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that does not fit the model."""


def load_adapters(model: nn.Module, folder: str | Path, root: str = "") -> Adapters:
    """Attaches the adapters of a PEFT LoRA checkpoint to ``model``.

    Args:
        model: the base model; changed in place.
        folder: holds PEFT's two files (written by us or by PEFT).
        root: dotted name of the submodule that the checkpoint belongs to, where that is not the whole model.

    Raises:
        CheckpointError: a file is missing or damaged, the checkpoint is not LoRA, it does not fit the model, or its
            layers have other names here and frozen factors made from names.
    """
    folder = Path(folder)
    config = read_config(folder)
    tensors, saved_root = _read_tensors(folder / WEIGHTS_FILE)
    _check_tensors(tensors, folder)
    _check_root(config, saved_root, root, folder)
    _check_ranks(config, tensors, folder)
    try:
        adapters = attach(model, config)
    except ValueError as error:
        raise CheckpointError(f"{folder} does not fit this model: {error}") from None
    try:
        _fill(adapters, tensors, folder, root + "." if root else "")
    except CheckpointError:
        adapters.detach()
        raise
    return adapters


def _fill(adapters: Adapters, tensors: dict[str, Tensor], folder: Path, prefix: str) -> None:
    expected: dict[str, Tensor] = {}
    beside: dict[str, Tensor] = {}  # what adapters stand beside: PEFT writes output layers, we heads that were trained
    for name, layer in adapters.layers.items():
        key = PREFIX + name.removeprefix(prefix)
        expected |= {f"{key}.{tensor}": value for tensor, value in layer.checkpoint().items()}
        beside |= {f"{key}.base_layer.{p}": value for p, value in layer.base_layer.named_parameters(recurse=False)}
    head = {PREFIX + n.removeprefix(prefix): p for n, p in head_tensors(adapters.model).items() if n.startswith(prefix)}
    missing = expected.keys() - tensors.keys()
    surplus = tensors.keys() - expected.keys() - beside.keys() - head.keys()
    if missing or surplus:
        raise CheckpointError(
            f"{folder} does not fit this model: {len(missing)} tensors missing (first: {min(missing, default='-')}), "
            f"{len(surplus)} unknown (first: {min(surplus, default='-')})"
        )
    _check_shapes(tensors, expected | beside | head, folder)
    for key, parameter in (beside | head).items():
        if key in tensors and not torch.equal(parameter.cpu(), tensors[key].to(parameter.dtype)):
            owner = prefix + key.removeprefix(PREFIX).rpartition(".")[0].removesuffix(".base_layer")
            adapters.given_heads.append(owner)
            if key in head and owner not in adapters.layers:
                head[key] = _untied(adapters.model, owner, parameter)
    _copy(tensors, expected | beside | head)


def _untied(model: nn.Module, owner: str, parameter: Tensor) -> Tensor:
    """The parameter, or, where other modules hold it too, one that is put into ``owner`` alone, as PEFT does."""
    module = model.get_submodule(owner)
    module = getattr(module, "base_layer", module)
    if id(getattr(module, "weight", None)) != id(parameter) or not sharers(model, module):
        return parameter
    own = nn.Parameter(parameter.detach().clone(), requires_grad=False)
    module.weight = own
    return own


def _check_tensors(tensors: dict[str, Tensor], folder: Path) -> None:
    broken = [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{folder}: {len(broken)} tensors hold NaN or Inf (first: {broken[0]}); the training diverged"
        )


def _check_root(config: AdapterConfig, saved: str | None, root: str, folder: Path) -> None:
    """Layers whose frozen factors are made from their names must have the names with which they were trained."""
    by_name = config.method in VARIANTS and VARIANTS[config.method].factors_by_name
    if by_name and saved not in (root, None):
        raise CheckpointError(
            f"{folder} was saved with root={saved!r}, but root={root!r} was given: method={config.method!r} makes its "
            f"frozen factors from the layers' full names, and other names make others; load with root={saved!r}, into "
            "a model whose layers are called as those that were trained"
        )


def _check_ranks(config: AdapterConfig, tensors: dict[str, Tensor], folder: Path) -> None:
    """No layer is made far larger than the tensors that are to fill it: memory is asked for before any comparison."""
    most = max((len(value) for key, value in tensors.items() if "lora_A" in key and value.dim()), default=0)
    asked = max([config.rank, *config.rank_pattern.values()])
    if asked > max(most, _ORDINARY_RANK):
        raise CheckpointError(f"{folder}: the configuration asks for rank {asked}, but no tensor has more than {most}")


def read_config(folder: Path) -> AdapterConfig:
    """The adapter configuration of a checkpoint: our own file where it agrees with PEFT's, else PEFT's."""
    if not (folder / OWN_FILE).exists():
        return _read_peft_config(folder)
    try:
        own = AdapterConfig.model_validate(_read_json(folder / OWN_FILE))
    except ValueError as error:
        raise CheckpointError(f"{folder / OWN_FILE} is not an adapter configuration: {error}") from None
    if not (folder / CONFIG_FILE).exists():
        return own
    theirs = _read_peft_config(folder)
    if "revision" in _read_json(folder / CONFIG_FILE):  # PEFT's own key: it has written its file since, and not ours
        return theirs
    same = ("rank", "alpha", "use_rslora", "rank_pattern", "alpha_pattern")
    return own if all(getattr(own, key) == getattr(theirs, key) for key in same) else theirs


def _read_peft_config(folder: Path) -> AdapterConfig:
    try:
        return AdapterConfig.from_peft(_read_json(folder / CONFIG_FILE), trained="both")
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from None


def _check_shapes(tensors: dict[str, Tensor], targets: dict[str, Tensor], folder: Path) -> None:
    for key, target in targets.items():
        if key not in tensors:
            continue
        if tensors[key].shape != target.shape:
            raise CheckpointError(
                f"{folder}: {key} has shape {tuple(tensors[key].shape)}, the model wants {tuple(target.shape)}"
            )


def _copy(tensors: dict[str, Tensor], targets: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for key, target in targets.items():
            if key in tensors:
                target.copy_(tensors[key])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors, and the root they were saved with; None where the file does not say."""
    try:
        with safe_open(path, framework="pt") as file:
            root = (file.metadata() or {}).get("root")
        return load_file(path), root
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
