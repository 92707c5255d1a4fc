"""Writes PEFT's checkpoints: ``adapter_config.json`` and ``adapter_model.safetensors``. No pickle."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..config.adapter import AdapterConfig
from ..config.peft_names import to_peft
from .base_layers import conv1d
from .layers import LowRank
from .targets import find_head, head_names, output_embeddings

CONFIG_FILE, WEIGHTS_FILE, OWN_FILE = "adapter_config.json", "adapter_model.safetensors", "ffalora_config.json"
PREFIX = "base_model.model."
#: Kinds of task whose heads PEFT trains whole, whatever adapters they have.
_REPLACES_HEAD = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


def save_adapters(
    model: nn.Module, config: Any, layers: Mapping[str, LowRank], heads: Iterable[str], folder: Path, root: str = ""
) -> None:
    """Files appear whole or not at all.

    Args:
        model: holds the adapters.
        config: theirs.
        layers: the adapted layers by dotted name.
        heads: names of the layers that are trained whole, or that a checkpoint brought with it.
        folder, root: as :meth:`Adapters.save` takes them.
    """
    config = AdapterConfig.model_validate(config, from_attributes=True)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = checkpoint_names({name: layer.checkpoint() for name, layer in layers.items()}, root)
    parts, whole = _head_parts(model, layers, _saved_heads(model, list(heads), root))
    for name, value in parts.items():
        tensors[PREFIX + _inside(name, root)] = value.detach().contiguous().cpu()
    said = {"format": "pt"} if config.method == "lora" else {"root": root}  # one, for several have no order on the disk
    _write(folder / WEIGHTS_FILE, lambda path: save_file(tensors, path, metadata=said))
    if config.method == "lora":
        theirs = json.dumps(_peft_config(model, config, layers, root, whole), indent=2, sort_keys=True)
        _write(folder / CONFIG_FILE, lambda path: path.write_text(theirs, encoding="utf-8"))
    else:  # PEFT's format of these methods holds the frozen factors, ours makes them from the seed
        (folder / CONFIG_FILE).unlink(missing_ok=True)
    trained = "b" if config.trained == "core" else config.trained
    own = config.model_copy(update={"trained": trained}).model_dump_json(indent=2)
    _write(folder / OWN_FILE, lambda path: path.write_text(own, encoding="utf-8"))


def checkpoint_names(factors: Mapping[str, Mapping[str, Tensor]], root: str) -> dict[str, Tensor]:
    """What checkpoints hold of layers, by the layers' names, under PEFT's names and ready to be written."""
    return {
        f"{PREFIX}{_inside(name, root)}.{tensor}": value.detach().contiguous().cpu()
        for name, own in factors.items()
        for tensor, value in own.items()
    }


def head_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """The task head's parameters under the names they have without adapters."""
    return {
        f"{name}.{p}".replace(".base_layer", ""): parameter
        for name, module in find_head(model).items()
        for p, parameter in module.named_parameters(recurse=False)
        if "lora_" not in f"{name}.{p}"
    }


def _head_parts(
    model: nn.Module, layers: Mapping[str, LowRank], heads: list[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """What a checkpoint holds of some heads: tensors by name, and the modules that PEFT puts in place whole.

    A layer with an adapter is none of these (PEFT would lose the adapter, or count it twice): its own tensors, without
    the adapter, go by PEFT's name of what an adapter stands beside.
    """
    tensors: dict[str, Tensor] = {}
    whole = []
    for name, parameter in head_tensors(model).items():
        owner, _, part = name.rpartition(".")
        head = next((head for head in heads if name.startswith(head + ".")), None)
        if head is None:
            continue
        if owner in layers:
            own = layers[owner].weight_alone() if part == "weight" else parameter
            tensors[f"{owner}.base_layer.{part}"] = own
        else:
            tensors[name] = parameter
            whole.append(owner if any(f"{layer}.".startswith(head + ".") for layer in layers) else head)
    return tensors, list(dict.fromkeys(whole))


def _saved_heads(model: nn.Module, trained: list[str], root: str) -> list[str]:
    """Heads that a checkpoint holds: trained ones, and frozen ones that did not come with the pretrained model."""
    output = output_embeddings(model.get_submodule(root) if root else model)
    return [
        name
        for name in head_names(model)
        if (not root or name.startswith(root + "."))
        and ".base_layer" not in name
        and (any(f"{head}.".startswith(name + ".") for head in trained) or model.get_submodule(name) is not output)
    ]


def _peft_config(
    model: nn.Module, config: AdapterConfig, layers: Mapping[str, LowRank], root: str, heads: list[str]
) -> dict[str, Any]:
    base = model.get_submodule(root) if root else model
    task = _task_type(base)
    if task in _REPLACES_HEAD and any(f"{name}.".startswith(f"{h}.") for name in layers for h in head_names(model)):
        task = None
    return to_peft(config.model_dump()) | {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": getattr(getattr(base, "config", None), "_name_or_path", None) or None,
        "inference_mode": True,
        "target_modules": sorted(_inside(name, root) for name in layers),
        "fan_in_fan_out": any(conv1d(layer.base_layer) for layer in layers.values()),
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
