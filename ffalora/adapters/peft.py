"""PEFT's checkpoint format, in and out: ``adapter_config.json`` and ``adapter_model.safetensors``. No pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..adapter_config import AdapterConfig
from .targets import find_head

if TYPE_CHECKING:
    from .attach import Adapters

CONFIG_FILE, WEIGHTS_FILE, OWN_FILE = "adapter_config.json", "adapter_model.safetensors", "ffalora_config.json"
_PREFIX = "base_model.model."


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that does not fit the model."""


def save_adapters(adapters: Adapters, folder: Path, root: str = "") -> None:
    """See :meth:`Adapters.save`. Files appear whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, layer in adapters.layers.items():
        key = _PREFIX + _inside(name, root)
        tensors[f"{key}.lora_A.weight"] = layer.lora_A.detach().float().contiguous().cpu()
        tensors[f"{key}.lora_B.weight"] = layer.lora_B.detach().float().contiguous().cpu()
    saved = {n: t for n, t in head_tensors(adapters.model).items() if not root or n.startswith(root + ".")}
    tensors |= {_PREFIX + _inside(name, root): t.detach().contiguous().cpu() for name, t in saved.items()}
    _write(folder / WEIGHTS_FILE, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    config = json.dumps(_peft_config(adapters, root, heads=sorted({n.split(".")[0] for n in saved})), indent=2, sort_keys=True)
    _write(folder / CONFIG_FILE, lambda path: path.write_text(config))
    own = adapters.config.model_dump_json(indent=2)
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
    adapters = attach(model, config)
    prefix = root + "." if root else ""
    expected: dict[str, nn.Parameter] = {}
    for name, layer in adapters.layers.items():
        key = _PREFIX + name.removeprefix(prefix)
        expected |= {f"{key}.lora_A.weight": layer.lora_A, f"{key}.lora_B.weight": layer.lora_B}
    head = {_PREFIX + n.removeprefix(prefix): p for n, p in head_tensors(model).items() if n.startswith(prefix)}
    missing = expected.keys() - tensors.keys()
    surplus = tensors.keys() - expected.keys() - head.keys()
    if missing or surplus:
        adapters.detach()
        raise CheckpointError(
            f"{folder} does not fit this model: {len(missing)} tensors missing (first: {min(missing, default='-')}), "
            f"{len(surplus)} unknown (first: {min(surplus, default='-')})"
        )
    _copy(tensors, expected | head, folder)
    return adapters


def read_config(folder: Path) -> AdapterConfig:
    """The adapter configuration of a checkpoint: our own file where there is one, else PEFT's."""
    if (folder / OWN_FILE).exists():
        try:
            return AdapterConfig.model_validate(_read_json(folder / OWN_FILE))
        except ValueError as error:
            raise CheckpointError(f"{folder / OWN_FILE} is not an adapter configuration: {error}") from None
    peft = _read_json(folder / CONFIG_FILE)
    if peft.get("peft_type") != "LORA":
        raise CheckpointError(f"{folder / CONFIG_FILE}: peft_type={peft.get('peft_type')!r}; only LORA can be loaded")
    for key in ("use_dora", "alora_invocation_tokens", "layer_replication", "megatron_config", "trainable_token_indices"):
        if peft.get(key):
            raise CheckpointError(f"{folder / CONFIG_FILE}: {key}={peft[key]!r} is not supported")
    return AdapterConfig(
        rank=peft["r"],
        alpha=peft["lora_alpha"],
        target_modules=peft["target_modules"],
        exclude_modules=peft.get("exclude_modules"),
        layers_to_transform=peft.get("layers_to_transform"),
        rank_pattern=peft.get("rank_pattern") or {},
        alpha_pattern=peft.get("alpha_pattern") or {},
        use_rslora=peft.get("use_rslora", False),
        dropout=peft.get("lora_dropout", 0.0),
        trained="both",
    )


def head_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """The task head's parameters under the names they have without adapters."""
    return {
        f"{name}.{p}".replace(".base_layer", ""): parameter
        for name, module in find_head(model).items()
        for p, parameter in module.named_parameters(recurse=False)
        if "lora_" not in p
    }


def _peft_config(adapters: Adapters, root: str, heads: list[str]) -> dict[str, Any]:
    config = adapters.config
    base = adapters.model.get_submodule(root) if root else adapters.model
    inside_heads = sorted({_inside(h, root).split(".")[0] for h in heads if not root or h.startswith(root)})
    return {
        "peft_type": "LORA",
        "task_type": _task_type(base),
        "base_model_name_or_path": getattr(getattr(base, "config", None), "_name_or_path", None) or None,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "target_modules": sorted(_inside(name, root) for name in adapters.layers),
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
        "use_rslora": config.use_rslora,
        "lora_dropout": config.dropout,
        "fan_in_fan_out": any(type(layer.base_layer).__name__ == "Conv1D" for layer in adapters.layers.values()),
        "bias": "none",
        "init_lora_weights": True,
        "modules_to_save": inside_heads or None,
    }


def _task_type(model: nn.Module) -> str | None:
    kind = type(model).__name__
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


def _copy(tensors: dict[str, Tensor], targets: dict[str, nn.Parameter], folder: Path) -> None:
    for key, target in targets.items():
        if key not in tensors:
            continue
        if tensors[key].shape != target.shape:
            raise CheckpointError(f"{folder}: {key} has shape {tuple(tensors[key].shape)}, the model wants {tuple(target.shape)}")
    with torch.no_grad():
        for key, target in targets.items():
            if key in tensors:
                target.copy_(tensors[key])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
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
    write(partial)
    partial.replace(path)
