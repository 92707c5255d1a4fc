"""PEFT's checkpoint format, in and out: ``adapter_config.json`` and ``adapter_model.safetensors``. No pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..config.adapter import AdapterConfig
from ..config.peft_names import to_peft
from .targets import find_head, head_names, output_embeddings

if TYPE_CHECKING:
    from .attach import Adapters

CONFIG_FILE, WEIGHTS_FILE, OWN_FILE = "adapter_config.json", "adapter_model.safetensors", "ffalora_config.json"
_PREFIX = "base_model.model."
_ORDINARY_RANK = 1024


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that does not fit the model."""


def save_adapters(adapters: Adapters, folder: Path, root: str = "") -> None:
    """See :meth:`Adapters.save`. Files appear whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, layer in adapters.layers.items():
        for tensor, value in layer.checkpoint().items():
            tensors[f"{_PREFIX}{_inside(name, root)}.{tensor}"] = value.detach().contiguous().cpu()
    heads = _saved_heads(adapters, root)
    for name, parameter in head_tensors(adapters.model).items():
        if any(name.startswith(head + ".") for head in heads):
            tensors[_PREFIX + _inside(name, root)] = parameter.detach().contiguous().cpu()
    _write(folder / WEIGHTS_FILE, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    if adapters.config.method == "lora":
        config = json.dumps(_peft_config(adapters, root, heads), indent=2, sort_keys=True)
        _write(folder / CONFIG_FILE, lambda path: path.write_text(config))
    else:  # PEFT's format of these methods holds the frozen factors, ours makes them from the seed
        (folder / CONFIG_FILE).unlink(missing_ok=True)
    trained = "b" if adapters.config.trained == "core" else adapters.config.trained
    own = adapters.config.model_copy(update={"trained": trained}).model_dump_json(indent=2)
    _write(folder / OWN_FILE, lambda path: path.write_text(own))


def load_adapters(model: nn.Module, folder: str | Path, root: str = "") -> Adapters:
    """Attaches the adapters of a PEFT LoRA checkpoint to ``model``.

    Args:
        model: the base model; changed in place.
        folder: holds PEFT's two files (written by us or by PEFT).
        root: dotted name of the submodule that the checkpoint belongs to, where that is not the whole model.

    Raises:
        CheckpointError: a file is missing or damaged, the checkpoint is not LoRA, or it does not fit the model.
    """
    from .attach import attach

    folder = Path(folder)
    config = read_config(folder)
    tensors = _read_tensors(folder / WEIGHTS_FILE)
    _check_tensors(tensors, folder)
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
    for name, layer in adapters.layers.items():
        key = _PREFIX + name.removeprefix(prefix)
        expected |= {f"{key}.{tensor}": value for tensor, value in layer.checkpoint().items()}
    head = {
        _PREFIX + n.removeprefix(prefix): p for n, p in head_tensors(adapters.model).items() if n.startswith(prefix)
    }
    missing = expected.keys() - tensors.keys()
    surplus = tensors.keys() - expected.keys() - head.keys()
    if missing or surplus:
        raise CheckpointError(
            f"{folder} does not fit this model: {len(missing)} tensors missing (first: {min(missing, default='-')}), "
            f"{len(surplus)} unknown (first: {min(surplus, default='-')})"
        )
    _copy(tensors, expected | head, folder)


def _check_tensors(tensors: dict[str, Tensor], folder: Path) -> None:
    broken = [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{folder}: {len(broken)} tensors hold NaN or Inf (first: {broken[0]}); the training diverged"
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
    same = ("rank", "alpha", "use_rslora", "rank_pattern", "alpha_pattern")
    # PEFT writes its own file alone, so that ours may be of an earlier adapter
    return own if all(getattr(own, key) == getattr(theirs, key) for key in same) else theirs


def _read_peft_config(folder: Path) -> AdapterConfig:
    try:
        return AdapterConfig.from_peft(_read_json(folder / CONFIG_FILE), trained="both")
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from None


def head_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """The task head's parameters under the names they have without adapters."""
    return {
        f"{name}.{p}".replace(".base_layer", ""): parameter
        for name, module in find_head(model).items()
        for p, parameter in module.named_parameters(recurse=False)
        if "lora_" not in p
    }


def _saved_heads(adapters: Adapters, root: str) -> list[str]:
    """Heads that a checkpoint holds: trained ones, and frozen ones that did not come with the pretrained model."""
    output = output_embeddings(adapters.model.get_submodule(root) if root else adapters.model)
    return [
        name
        for name in head_names(adapters.model)
        if (not root or name.startswith(root + "."))
        and ".base_layer" not in name
        and (_is_trained(adapters, name) or adapters.model.get_submodule(name) is not output)
    ]


def _is_trained(adapters: Adapters, name: str) -> bool:
    return any(head == name or head.startswith(name + ".") for head in adapters.heads)


def _peft_config(adapters: Adapters, root: str, heads: list[str]) -> dict[str, Any]:
    base = adapters.model.get_submodule(root) if root else adapters.model
    return to_peft(adapters.config.model_dump()) | {
        "peft_type": "LORA",
        "task_type": _task_type(base),
        "base_model_name_or_path": getattr(getattr(base, "config", None), "_name_or_path", None) or None,
        "inference_mode": True,
        "target_modules": sorted(_inside(name, root) for name in adapters.layers),
        "fan_in_fan_out": any(type(layer.base_layer).__name__ == "Conv1D" for layer in adapters.layers.values()),
        "modules_to_save": [_inside(name, root) for name in heads] or None,
    }


def _task_type(model: nn.Module) -> str | None:
    kind = type(model).__name__
    if getattr(model, "main_input_name", "input_ids") != "input_ids":
        return None  # PEFT's task classes pass input_ids on, and speech or image models have none
    for ending, task in (
        ("ForSequenceClassification", "SEQ_CLS"),
        ("ForCausalLM", "CAUSAL_LM"),
        ("LMHeadModel", "CAUSAL_LM"),
        ("ForConditionalGeneration", "SEQ_2_SEQ_LM"),
        ("ForTokenClassification", "TOKEN_CLS"),
        ("ForQuestionAnswering", "QUESTION_ANS"),
    ):
        if kind.endswith(ending):
            return task
    return None


def _inside(name: str, root: str) -> str:
    return name.removeprefix(root + ".") if root else name


def _copy(tensors: dict[str, Tensor], targets: dict[str, Tensor], folder: Path) -> None:
    for key, target in targets.items():
        if key not in tensors:
            continue
        if tensors[key].shape != target.shape:
            raise CheckpointError(
                f"{folder}: {key} has shape {tuple(tensors[key].shape)}, the model wants {tuple(target.shape)}"
            )
    with torch.no_grad():
        for key, target in targets.items():
            if key in tensors:
                target.copy_(tensors[key])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None


def _write(path: Path, write) -> None:
    """Writes beside the target and renames, so that the file is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        said = f"cannot write: {error}; what was there before is intact"
        raise OSError(getattr(error, "errno", None), said, str(path)) from error
